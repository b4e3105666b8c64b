//! The text of a spec, read once: a run evaluates it in many processes, and all must mean the same by it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::needs::Needs;

/// How much text one file may have. Specs written by hand have kilobytes, generated ones at most a few megabytes; a device may never end.
const LONGEST: u64 = 16 << 20;

/// A spec and every file that it has loaded so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SpecFiles {
    /// What the spec's relative paths are resolved against, absolute.
    folder: PathBuf,
    /// What `load()` in the spec is resolved against, as the user named it.
    shown: PathBuf,
    /// The same file has the same identity, however it was named.
    identities: BTreeMap<PathBuf, PathBuf>,
    /// By identity.
    texts: BTreeMap<PathBuf, String>,
}

impl SpecFiles {
    /// May a test drop packets between services? As far as their texts tell, without loading them.
    pub fn cut_packets(&self) -> bool {
        let texts: Vec<String> = self.texts.values().cloned().collect();
        Needs::of(&texts).cuts_packets
    }

    /// Reads the spec itself; what it loads follows as it is loaded.
    ///
    /// # Errors
    /// It cannot be read, or is no text; as a lower-case fragment.
    pub(super) fn read(spec: &Path) -> Result<SpecFiles, String> {
        let text = read(spec)?;
        // What a shell hands over (`/dev/stdin`, `<(generate)`) lies in no folder of its own.
        let handed = ["/dev", "/proc"].iter().any(|dir| spec.starts_with(dir));
        let shown = match spec.is_file() && !handed {
            true => spec.parent().unwrap_or(Path::new("")),
            false => Path::new(""),
        };
        let here = match shown.as_os_str().is_empty() {
            true => Path::new("."),
            false => shown,
        };
        let folder = here
            .canonicalize()
            .map_err(|e| format!("the folder of the spec cannot be resolved: {e}"))?;
        let identity = spec.canonicalize().unwrap_or_else(|_| spec.to_owned());
        Ok(SpecFiles {
            folder,
            shown: shown.to_owned(),
            identities: BTreeMap::from([(spec.to_owned(), identity.clone())]),
            texts: BTreeMap::from([(identity, text)]),
        })
    }

    /// What the spec's relative paths are resolved against, absolute.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What `load()` in the spec is resolved against, as the user named it.
    pub(super) fn shown(&self) -> &Path {
        &self.shown
    }

    /// The files that it was read from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.texts.keys().map(PathBuf::as_path)
    }

    /// Which file is meant by a path.
    ///
    /// # Errors
    /// There is none, or it is out of reach.
    pub(super) fn identity(&mut self, path: &Path) -> io::Result<PathBuf> {
        if let Some(known) = self.identities.get(path) {
            return Ok(known.clone());
        }
        let identity = path.canonicalize()?;
        self.identities.insert(path.to_owned(), identity.clone());
        Ok(identity)
    }

    /// The text of a file, as it was when it was first asked for.
    ///
    /// # Errors
    /// It cannot be read, or is no text; as a lower-case fragment.
    pub(super) fn text(&mut self, identity: &Path) -> Result<String, String> {
        if let Some(known) = self.texts.get(identity) {
            return Ok(known.clone());
        }
        let text = read(identity)?;
        self.texts.insert(identity.to_owned(), text.clone());
        Ok(text)
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = vec![];
    File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => format!("there is no file `{}`", path.display()),
            _ => format!("`{}` cannot be read: {e}", path.display()),
        })?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!(
            "`{}` is no spec: it has more than {} MiB",
            path.display(),
            LONGEST >> 20
        ));
    }
    let text =
        String::from_utf8(bytes).map_err(|_| format!("`{}` is not UTF-8 text", path.display()))?;
    // Some editors begin a file with a byte order mark.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.star");
        std::fs::write(&path, "\u{feff}x = 1\n").unwrap();
        let mut files = SpecFiles::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let identity = files.identity(&path).unwrap();
        assert_eq!(files.text(&identity).unwrap(), "x = 1\n");
        let sent = serde_json::to_string(&files).unwrap();
        let mut files: SpecFiles = serde_json::from_str(&sent).unwrap();
        assert_eq!(files.identity(&path).unwrap(), identity);
        assert_eq!(files.text(&identity).unwrap(), "x = 1\n");
    }

    #[test]
    fn what_has_no_end_is_no_spec() {
        let refused = SpecFiles::read(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(refused, "`/dev/zero` is no spec: it has more than 16 MiB");
    }
}
