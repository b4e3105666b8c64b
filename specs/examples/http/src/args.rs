//! Command lines of the form `--name value …`.

use std::net::SocketAddr;

/// The options given, each once.
#[derive(Debug, Default)]
pub struct Args(Vec<(String, String)>);

impl Args {
    /// Reads the process's own command line.
    ///
    /// # Errors
    /// An option that is not in `known`, is given twice or has no value.
    pub fn from_env(known: &[&str]) -> Result<Args, String> {
        Args::parse(std::env::args().skip(1), known)
    }

    /// Reads these words.
    ///
    /// # Errors
    /// See [`Args::from_env`].
    pub fn parse(mut words: impl Iterator<Item = String>, known: &[&str]) -> Result<Args, String> {
        let mut args = Args::default();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .filter(|name| known.contains(name))
                .ok_or_else(|| format!("unknown argument `{word}`"))?;
            if args.get(name).is_some() {
                return Err(format!("`{word}` was given twice"));
            }
            let value = words
                .next()
                .ok_or_else(|| format!("`{word}` needs a value"))?;
            args.0.push((name.to_owned(), value));
        }
        Ok(args)
    }

    /// The value of `--name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The address that `--name` gives, else the one in the environment variable `variable`.
    ///
    /// # Errors
    /// Neither is set, or it is no `host:port`.
    pub fn addr(&self, name: &str, variable: &str) -> Result<SocketAddr, String> {
        let (origin, text) = match (self.get(name), std::env::var(variable)) {
            (Some(text), _) => (format!("--{name}"), text.to_owned()),
            (None, Ok(text)) => (variable.to_owned(), text),
            (None, Err(_)) => {
                return Err(format!("neither --{name} nor {variable} says an address"));
            }
        };
        text.parse()
            .map_err(|_| format!("{origin}: `{text}` is not an IP address and port"))
    }
}

/// Ends the process with a usage error (status 2).
pub fn usage(message: &str, usage: &str) -> ! {
    crate::log(format_args!("error: {message}\nusage: {usage}"));
    std::process::exit(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Args, String> {
        Args::parse(
            words.split_whitespace().map(str::to_owned),
            &["listen", "wal"],
        )
    }

    #[test]
    fn options_are_checked() {
        let args = parse("--listen 127.0.0.1:80").unwrap();
        assert_eq!(args.addr("listen", "UNSET").unwrap().port(), 80);
        assert!(args.addr("wal", "FAULTBOX_NO_SUCH_VARIABLE").is_err());
        for wrong in ["--lisen x", "listen x", "--listen", "--wal a --wal b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse("--listen here").unwrap().addr("listen", "X").is_err());
    }
}
