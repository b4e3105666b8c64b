//! Durations and probabilities as a spec writes them.

use std::time::Duration;

/// Reads "500ms", "2s", "1m30s", "1.5s", "250us", "1h": numbers each with a unit, largest first by custom but in any order.
///
/// # Errors
/// Says what is wrong, as a lower-case fragment.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let hint = "write a number with a unit, such as \"500ms\", \"2s\" or \"1m30s\"";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(format!("empty duration; {hint}"));
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let value: f64 = number
            .parse()
            .map_err(|_| format!("`{text}` is not a duration; {hint}"))?;
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_len);
        let scale = match unit.trim() {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("`{text}` has no unit; {hint}")),
            other => {
                return Err(format!(
                    "unknown unit `{other}` in duration `{text}`; the units are ns, us, ms, s, m, h"
                ));
            }
        };
        total += value * scale;
        rest = next;
    }
    seconds(total)
}

/// A duration from a number of seconds.
///
/// # Errors
/// Refuses negative, non-finite and absurdly long values.
pub fn seconds(value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| format!("{value} seconds is not a usable duration"))
}

/// Reads a probability: a float in 0..1, or text such as "20%" (per cent, always: "1%" is 0.01) or "0.2".
///
/// # Errors
/// Says what is wrong, as a lower-case fragment.
pub fn parse_probability(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, scale) = match text.strip_suffix('%') {
        Some(n) => (n.trim(), 0.01),
        None => (text, 1.0),
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a probability; write 0.2 or \"20%\""))?;
    check_probability(value * scale)
}

/// Refuses what is not within 0..=1.
///
/// # Errors
/// Says what is wrong, as a lower-case fragment.
pub fn check_probability(value: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "probability {value} is outside 0..1; write 0.2 or \"20%\" for one call in five"
        ))
    }
}

/// Reads a rate such as "64kbit", "1mbit", "10KB/s", "500B/s" into bytes per second.
/// `bit` units are decimal bits, `B` units are decimal bytes; the "/s" may be left out.
///
/// # Errors
/// Says what is wrong, as a lower-case fragment.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let hint = "write \"64kbit\", \"1mbit\" or \"10KB/s\"";
    let body = text.trim().strip_suffix("/s").unwrap_or(text.trim());
    let digits = body
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(body.len());
    let (number, unit) = body.split_at(digits);
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a rate; {hint}"))?;
    let unit = unit.trim();
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "bit" => value / 8.0,
        "kbit" => value * 1e3 / 8.0,
        "mbit" => value * 1e6 / 8.0,
        "gbit" => value * 1e9 / 8.0,
        "b" => value,
        "kb" => value * 1e3,
        "mb" => value * 1e6,
        "gb" => value * 1e9,
        _ => return Err(format!("`{text}` has no known unit; {hint}")),
    };
    if bytes >= 1.0 {
        Ok(bytes as u64)
    } else {
        Err(format!(
            "a rate of `{text}` is less than one byte per second"
        ))
    }
}

/// A duration as a person writes it: the shortest of "2s", "500ms", "1m30s", "250us".
pub fn show(d: Duration) -> String {
    let ns = d.as_nanos();
    if ns == 0 {
        return "0s".into();
    }
    if ns < 1_000 {
        return format!("{ns}ns");
    }
    if ns < 1_000_000 {
        return trim_unit(ns as f64 / 1e3, "us");
    }
    if ns < 1_000_000_000 {
        return trim_unit(ns as f64 / 1e6, "ms");
    }
    let s = d.as_secs();
    if s < 60 || d.subsec_nanos() != 0 {
        return trim_unit(d.as_secs_f64(), "s");
    }
    let (m, s) = (s / 60, s % 60);
    if s == 0 {
        format!("{m}m")
    } else {
        format!("{m}m{s}s")
    }
}

fn trim_unit(value: f64, unit: &str) -> String {
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_show() {
        for (text, ms, shown) in [
            ("500ms", 500.0, "500ms"),
            ("2s", 2000.0, "2s"),
            ("1m30s", 90_000.0, "1m30s"),
            ("1.5s", 1500.0, "1.5s"),
            ("250us", 0.25, "250us"),
            ("2m", 120_000.0, "2m"),
        ] {
            let d = parse_duration(text).unwrap();
            assert!((d.as_secs_f64() * 1e3 - ms).abs() < 1e-6, "{text}");
            assert_eq!(show(d), shown);
        }
        for bad in ["", "5", "ms", "5 parsecs", "-1s", "1..2s", "inf s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percent_is_always_per_cent() {
        assert_eq!(parse_probability("1%").unwrap(), 0.01);
        assert_eq!(parse_probability("20%").unwrap(), 0.2);
        assert_eq!(parse_probability("0.5").unwrap(), 0.5);
        for bad in ["120%", "-0.1", "often", "NaN"] {
            assert!(parse_probability(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_decimal() {
        assert_eq!(parse_rate("64kbit").unwrap(), 8_000);
        assert_eq!(parse_rate("10KB/s").unwrap(), 10_000);
        assert!(parse_rate("64").is_err());
        assert!(parse_rate("1bit").is_err());
    }
}
