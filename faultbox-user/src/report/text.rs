//! Small words that every report uses: durations, cut and cleaned lines, a shell's quoting.

use unicode_width::UnicodeWidthChar;

/// A span of time as a person reads it: "870 us", "12 ms", "1.23 s", "2 min 5 s".
pub fn millis(ms: f64) -> String {
    if !ms.is_finite() || ms < 0.0 {
        return "?".into();
    }
    if ms < 1.0 {
        format!("{:.0} us", ms * 1e3)
    } else if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if ms < 59_995.0 {
        format!("{:.2} s", ms / 1e3)
    } else {
        let seconds = (ms / 1e3).round() as u64;
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Nanoseconds as microseconds for tables: three digits that mean something.
pub fn micros(ns: u64) -> String {
    let us = ns as f64 / 1e3;
    if us < 10.0 {
        format!("{us:.2}")
    } else if us < 100.0 {
        format!("{us:.1}")
    } else {
        format!("{us:.0}")
    }
}

/// A count with its noun: "1 hit", "2 hits".
pub fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {noun}{plural}")
}

/// Text from a service or a spec, made safe for a terminal: tabs become spaces, other control characters (escape sequences
/// foremost) are spelled out.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str("    "),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if unshowable(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// How many columns `text` takes on a terminal.
pub fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// `text` in at most `width` columns, with "..." where it was cut.
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w + 3 > width {
            break;
        }
        used += w;
        out.push(c);
    }
    out.push_str("...");
    out
}

/// `text` broken at spaces into lines of at most `width` columns; a longer word stands alone and is not broken.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![];
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && columns(&line) + 1 + columns(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// An argument as a shell reads it back: bare where that is safe, in single quotes otherwise. Only what a terminal must not be shown
/// takes the `$'…'` of bash, zsh, ksh and POSIX 2024.
pub fn shell(arg: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !arg.is_empty() && arg.chars().all(safe) {
        return arg.to_owned();
    }
    if arg.chars().all(|c| !unshowable(c)) {
        return format!("'{}'", arg.replace('\'', r"'\''"));
    }
    let mut out = String::from("$'");
    for c in arg.chars() {
        match c {
            '\'' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if unshowable(c) => {
                // Octal takes at most three digits, so that a digit that follows is not drawn in.
                for byte in c.to_string().bytes() {
                    out.push_str(&format!("\\{byte:03o}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Control characters, and the bidirectional overrides that make a line read as something else (Trojan Source, CVE-2021-42574).
fn unshowable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The command that runs one test again with the decisions it had.
pub fn rerun(spec: &str, test: &str, seed: u64) -> String {
    // A name that begins with a dash would be read as a flag.
    let spec = if spec.starts_with('-') {
        format!("./{spec}")
    } else {
        spec.to_owned()
    };
    let test = if test.starts_with('-') {
        format!("--test={}", shell(test))
    } else {
        format!("--test {}", shell(test))
    };
    format!("faultbox test {} {test} --seed {seed}", shell(&spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        for (ms, text) in [
            (0.0, "0 us"),
            (0.87, "870 us"),
            (1.26, "1.3 ms"),
            (12.4, "12 ms"),
            (999.4, "999 ms"),
            (999.6, "1.00 s"),
            (1234.0, "1.23 s"),
            (125_000.0, "2 min 5 s"),
            (f64::NAN, "?"),
        ] {
            assert_eq!(millis(ms), text, "{ms}");
        }
    }

    #[test]
    fn a_line_cannot_drive_the_terminal() {
        assert_eq!(clean("a\tb\x1b[2J\r"), "a    b\\u{1b}[2J\\r");
        assert_eq!(clean("\u{202e}x"), "\\u{202e}x");
        assert_eq!(clean("größe ✓"), "größe ✓");
    }

    #[test]
    fn cutting_counts_columns_not_bytes() {
        assert_eq!(cut("0123456789", 10), "0123456789");
        assert_eq!(cut("0123456789a", 10), "0123456...");
        assert_eq!(cut("日本語日本語", 9), "日本語...");
    }

    #[test]
    fn wrapping_keeps_words() {
        assert_eq!(wrap("a bb ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrap("unbreakable x", 4), ["unbreakable", "x"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn a_shell_reads_back_what_was_meant() {
        assert_eq!(
            rerun("my spec.star", "it's[a]", 7),
            r"faultbox test 'my spec.star' --test 'it'\''s[a]' --seed 7"
        );
        assert_eq!(shell("a'\x1b1ü\u{85}"), r"$'a\'\0331ü\302\205'");
        assert_eq!(
            rerun("-x.star", "-t", 1),
            "faultbox test ./-x.star --test=-t --seed 1"
        );
    }
}
