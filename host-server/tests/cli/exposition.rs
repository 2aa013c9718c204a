//! A reader of the Prometheus text exposition format that forgives nothing.

use std::collections::{BTreeMap, BTreeSet};

/// A scraped page.
pub struct Page {
    samples: BTreeMap<(String, Labels), f64>,
}

type Labels = BTreeMap<String, String>;

impl Page {
    /// Reads `text`, and panics at the first fault: a sample outside of its family, a family told twice, a name or
    /// label that is none, a histogram that does not add up.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has an end");
        let mut page = Self { samples: BTreeMap::new() };
        let mut families = BTreeSet::new();
        let mut family = (String::new(), String::new());
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && families.insert(name.to_owned()), "{line}");
                let kind =
                    lines.next().expect("a type").strip_prefix("# TYPE ").expect("a type after the help");
                let (typed, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(typed, name);
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{kind}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                family = (name.to_owned(), kind.to_owned());
                continue;
            }
            let (name, labels, value) = sample(line);
            let suffixes: &[&str] =
                if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(
                suffixes.iter().any(|suffix| name == format!("{}{suffix}", family.0)),
                "{line} is in {family:?}"
            );
            assert!(family.1 != "counter" || value >= 0.0, "{line}");
            assert!(page.samples.insert((name, labels), value).is_none(), "twice: {line}");
        }
        page.check_histograms();
        page
    }

    /// The one sample of `name` that has all of `labels`.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |found: &Labels| {
            labels.iter().all(|(name, value)| found.get(*name).is_some_and(|found| found == value))
        };
        let mut found = self.samples.iter().filter(|((one, labels), _)| one == name && has(labels));
        let (_, value) = found.next().unwrap_or_else(|| panic!("no {name} with {labels:?}"));
        assert!(found.next().is_none(), "several {name} with {labels:?}");
        *value
    }

    fn check_histograms(&self) {
        let mut buckets: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            let Some(family) = name.strip_suffix("_bucket") else { continue };
            let mut labels = labels.clone();
            let bound = labels.remove("le").expect("a bucket has a bound");
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            buckets.entry((family.to_owned(), labels)).or_default().push((bound, *value));
        }
        for ((family, labels), mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family}: {buckets:?}");
            let (last, total) = *buckets.last().unwrap();
            assert!(last.is_infinite(), "{family} ends in +Inf");
            let part = |suffix: &str| self.samples[&(format!("{family}{suffix}"), labels.clone())];
            assert_eq!(part("_count"), total);
            assert_eq!(part("_sum") > 0.0, total > 0.0, "{family}: time passes");
        }
    }
}

fn sample(line: &str) -> (String, Labels, f64) {
    let name_len = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(name_len);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").expect("a label");
            assert!(is_name(label) && !label.contains(':') && !label.starts_with("__"), "{line}");
            let (value, after) = quoted(value);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix('}').expect("the end of the labels");
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("one space before the value");
    (name.to_owned(), labels, value.parse().expect("a number"))
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next().expect("an escape").1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => panic!("\\{other} is no escape"),
            },
            other => value.push(other),
        }
    }
    panic!("a value without end: {text}");
}

fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
