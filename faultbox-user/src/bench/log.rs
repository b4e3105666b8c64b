//! Latencies as an HdrHistogram log (format 1.3, histograms V2): one line per block, tagged with its side, for whatever reads such logs.

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

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

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::analysis::tests::{subject, taken};
    use super::*;

    #[test]
    fn a_line_per_block_with_its_side() {
        let finding = Finding::of(subject(), taken(1, 0), 1);
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
}
