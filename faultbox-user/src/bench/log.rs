//! Latencies as an HdrHistogram log (format 1.3, histograms V2): one line per block, tagged with its side, for whatever reads such logs.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use super::analysis::Finding;

/// The log of one subject. Values are nanoseconds, maxima in the log's own column milliseconds.
pub fn write(finding: &Finding) -> String {
    let mut out = vec![];
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    let about = format!(
        "{}: {}; values in nanoseconds, a line per block",
        finding.subject.name, finding.subject.what
    );
    // A comment is one line.
    builder.add_comment(&about.replace(['\n', '\r'], " "));
    builder.with_start_time(UNIX_EPOCH);
    let written = builder
        .begin_log_with(&mut out, &mut serializer)
        .map(|mut log| {
            for block in &finding.blocks {
                let mut latency: Histogram<u64> =
                    Histogram::new(3).expect("three digits are valid");
                for (ns, n) in &block.pairs {
                    let _ = latency.record_n(*ns, *n);
                }
                let side = finding.subject.sides()[usize::from(!block.base)];
                let (start, took) = (block.start, block.took.max(Duration::from_nanos(1)));
                // Memory takes whatever is written.
                let _ = log.write_histogram(&latency, start, took, Tag::new(side));
            }
        });
    debug_assert!(written.is_ok());
    String::from_utf8(out).unwrap_or_default()
}

/// Latencies by side.
pub type Sides = BTreeMap<String, Histogram<u64>>;

/// All blocks of a log, added up by side.
///
/// # Errors
/// A line is none of a log; a lower-case fragment.
pub fn read(text: &str) -> Result<Sides, String> {
    let mut sides = Sides::new();
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(text.as_bytes()) {
        let line = match entry {
            Ok(LogEntry::Interval(line)) => line,
            Ok(_) => continue,
            Err(_) => return Err("a line of it is no interval".to_owned()),
        };
        let Some(tag) = line.tag() else { continue };
        let bytes = STANDARD
            .decode(line.encoded_histogram())
            .map_err(|e| format!("a histogram is no base64: {e}"))?;
        let mut block = deserializer
            .deserialize::<u64, _>(&mut bytes.as_slice())
            .map_err(|e| format!("a histogram cannot be decoded: {e:?}"))?;
        // What is read has room for itself only, and the next block may be slower.
        block.auto(true);
        match sides.get_mut(tag.as_str()) {
            Some(sum) => drop(sum.add(block)),
            None => drop(sides.insert(tag.as_str().to_owned(), block)),
        }
    }
    Ok(sides)
}

#[cfg(test)]
mod tests {
    use super::super::analysis::tests::{subject, taken};
    use super::*;

    #[test]
    fn a_line_per_block_with_its_side() {
        let finding = Finding::of(subject(), taken(1, 0), 1, 2);
        let text = write(&finding);
        let tags: Vec<String> = IntervalLogIterator::new(text.as_bytes())
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(line) => {
                    assert!(line.encoded_histogram().starts_with("HISTFAAA"));
                    line.tag().map(|t| t.as_str().to_owned())
                }
                _ => None,
            })
            .collect();
        assert_eq!(tags, ["direct", "mediated", "mediated", "direct"]);
    }

    #[test]
    fn what_was_written_can_be_read() {
        let mut slow_at_last = taken(2, 300);
        for block in slow_at_last.blocks.iter_mut().rev().take(3) {
            block.pairs.push((50_000_000, 1));
        }
        let finding = Finding::of(subject(), slow_at_last, 1, 2);
        let sides = read(&write(&finding)).unwrap();
        assert_eq!(sides.keys().collect::<Vec<_>>(), ["direct", "mediated"]);
        for (base, name) in [(true, "direct"), (false, "mediated")] {
            let (wrote, read) = (finding.latency(base), &sides[name]);
            assert_eq!((wrote.len(), wrote.max()), (read.len(), read.max()));
        }
        assert!(read("no log").is_err() && read("").unwrap().is_empty());
        assert!(read("Tag=direct,0.1,0.1,1.0,SElTVEZ").is_err());
    }
}
