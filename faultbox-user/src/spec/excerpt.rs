//! What is kept of a value that is too large for a report: where it differs from the other one.

/// The longest text that is kept whole, in bytes.
const WHOLE: usize = 16 << 10;
/// How much is kept of a longer one, in bytes; a quarter of it stands before the place that matters.
const WINDOW: usize = 4 << 10;

/// The two sides of a comparison, each cut around the first byte in which they differ.
pub fn compared(expected: &str, actual: &str) -> (String, String) {
    let same = expected
        .bytes()
        .zip(actual.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    (around(expected, same), around(actual, same))
}

/// A text, or its part around `at` if it is long.
pub fn around(text: &str, at: usize) -> String {
    if text.len() <= WHOLE {
        return text.to_owned();
    }
    let latest = text.len() - WINDOW;
    let start = text.floor_char_boundary(at.saturating_sub(WINDOW / 4).min(latest));
    let end = text.ceil_char_boundary(start + WINDOW);
    let left_out = |bytes: usize, side: &str| match bytes {
        0 => String::new(),
        n => format!("[{n} bytes {side}]"),
    };
    format!(
        "{}{}{}",
        left_out(start, "before"),
        &text[start..end],
        left_out(text.len() - end, "after")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_stay_whole() {
        assert_eq!(compared("a", "b"), ("a".to_owned(), "b".to_owned()));
        let long = "x".repeat(WHOLE);
        assert_eq!(around(&long, 7), long);
    }

    #[test]
    fn long_values_are_cut_around_the_difference() {
        let expected = format!("{}A{}", "é".repeat(20_000), "é".repeat(20_000));
        let actual = expected.replace('A', "B");
        let (expected, actual) = compared(&expected, &actual);
        assert!(expected.contains('A') && actual.contains('B'));
        assert!(expected.len() < WINDOW + 60, "{}", expected.len());
        assert!(expected.starts_with("[") && expected.ends_with(" after]"));
    }

    #[test]
    fn ends_are_kept() {
        let long = "x".repeat(WHOLE + 1);
        let (shorter, longer) = compared(&long, &format!("{long}y"));
        assert!(shorter.ends_with('x') && longer.ends_with('y'));
        assert!(around(&long, 0).starts_with('x'));
    }
}
