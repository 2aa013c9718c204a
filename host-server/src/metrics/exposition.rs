//! Writes the Prometheus text exposition format, version 0.0.4.

use std::fmt::{Display, Write as _};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, while the server runs. Its name ends in `_total`.
    Counter,
    Gauge,
    Histogram,
}

/// Label names and values.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// A page of families.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family. Its samples follow before any other family begins.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name} is named like another kind");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}", escape_help(help));
        Family { name, text: &mut self.text }
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

/// A family whose samples are being written.
pub struct Family<'a> {
    name: &'static str,
    text: &'a mut String,
}

impl Family<'_> {
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// `buckets` are upper bounds with the counts at or below them; the last bound is infinite.
    pub fn histogram(&mut self, labels: Labels<'_>, buckets: &[(f64, u64)], sum: f64) -> &mut Self {
        for (bound, count) in buckets {
            let bound = if bound.is_infinite() { "+Inf".to_owned() } else { bound.to_string() };
            self.line("_bucket", labels, Some(&bound), count);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, buckets.last().map_or(0, |(_, count)| *count));
        self
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            let _ = write!(self.text, "{separator}{name}=\"{}\"", escape_label(value));
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escape_help(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

fn escape_label(text: &str) -> String {
    escape_help(text).replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_samples_and_histograms_are_written_as_the_format_says() {
        let mut page = Exposition::default();
        page.family("a_total", Kind::Counter, "Says \\ and\nmore.")
            .sample(&[], 7)
            .sample(&[("path", "x\\y\"z\n"), ("b", "")], u64::MAX);
        page.family("b_seconds", Kind::Histogram, "H.").histogram(
            &[("o", "r")],
            &[(0.000_05, 1), (1.0, 3), (f64::INFINITY, 4)],
            2.5,
        );
        let expected = r#"# HELP a_total Says \\ and\nmore.
# TYPE a_total counter
a_total 7
a_total{path="x\\y\"z\n",b=""} 18446744073709551615
# HELP b_seconds H.
# TYPE b_seconds histogram
b_seconds_bucket{o="r",le="0.00005"} 1
b_seconds_bucket{o="r",le="1"} 3
b_seconds_bucket{o="r",le="+Inf"} 4
b_seconds_sum{o="r"} 2.5
b_seconds_count{o="r"} 4
"#;
        assert_eq!(page.into_text(), expected);
    }
}
