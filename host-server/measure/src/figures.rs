//! Figures of Ringfort and its rivals, each with every round's value.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Whom a figure is of: a key of the JSON object, a column of the table.
pub type Subject = &'static str;

pub const RINGFORT: Subject = "ringfort";

/// One figure of one subject: its samples and what they count.
struct Figure {
    subject: Subject,
    name: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
}

/// What a topic has measured, in the order in which it was first noted.
#[derive(Default)]
pub struct Figures {
    figures: Vec<Figure>,
    conditions: Vec<(&'static str, String)>,
    left_out: Vec<(Subject, String)>,
}

impl Figures {
    pub fn note(&mut self, subject: Subject, name: &'static str, unit: &'static str, value: f64) {
        let known = |figure: &&mut Figure| figure.subject == subject && figure.name == name;
        match self.figures.iter_mut().find(known) {
            Some(figure) => figure.samples.push(value),
            None => self.figures.push(Figure { subject, name, unit, samples: vec![value] }),
        }
    }

    /// Something a reader must know to judge the figures.
    pub fn condition(&mut self, name: &'static str, value: impl Into<String>) {
        self.conditions.push((name, value.into()));
    }

    /// A subject that could not be measured here, why, and what would help.
    pub fn leave_out(&mut self, subject: Subject, reason: impl Into<String>) {
        self.left_out.push((subject, reason.into()));
    }

    fn subjects(&self) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for figure in &self.figures {
            if !subjects.contains(&figure.subject) {
                subjects.push(figure.subject);
            }
        }
        subjects
    }

    /// `{SUBJECT: {FIGURE: MEDIAN}, "spread": {SUBJECT: {FIGURE: [LEAST, GREATEST]}}, "conditions": {…}, "left_out": {…}}`
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let mut spreads = Map::new();
        for subject in self.subjects() {
            let of_subject = || self.figures.iter().filter(|figure| figure.subject == subject);
            let medians: Map<_, _> =
                of_subject().map(|figure| (figure.name.to_owned(), json!(round(figure.median())))).collect();
            let spread: Map<_, _> = of_subject()
                .map(|figure| (figure.name.to_owned(), json!(figure.spread().map(round))))
                .collect();
            all.insert(subject.to_owned(), Value::Object(medians));
            spreads.insert(subject.to_owned(), Value::Object(spread));
        }
        let conditions: Map<_, _> =
            self.conditions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let left_out: Map<_, _> =
            self.left_out.iter().map(|(subject, reason)| ((*subject).to_owned(), json!(reason))).collect();
        all.insert("spread".to_owned(), Value::Object(spreads));
        all.insert("conditions".to_owned(), Value::Object(conditions));
        all.insert("left_out".to_owned(), Value::Object(left_out));
        Value::Object(all)
    }

    /// A row for each figure, a column for each subject: median, least and greatest.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        // Writing to a string cannot fail.
        for (name, value) in &self.conditions {
            let _ = writeln!(table, "{name}: {value}");
        }
        for (subject, reason) in &self.left_out {
            let _ = writeln!(table, "{subject} is left out: {reason}");
        }
        let subjects = self.subjects();
        let _ = write!(table, "\n{:<44}", "");
        for subject in &subjects {
            let _ = write!(table, " {subject:>24}");
        }
        table.push('\n');
        let mut shown: Vec<&'static str> = Vec::new();
        for first in &self.figures {
            if shown.contains(&first.name) {
                continue;
            }
            shown.push(first.name);
            let _ = write!(table, "{:<44}", first.name);
            for subject in &subjects {
                let of = |figure: &&Figure| figure.subject == *subject && figure.name == first.name;
                let cell = self.figures.iter().find(of).map(Figure::to_cell).unwrap_or_default();
                let _ = write!(table, " {cell:>24}");
            }
            let _ = writeln!(table, "  {}", first.unit);
        }
        table
    }
}

impl Figure {
    fn median(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        }
    }

    /// The least sample and the greatest.
    fn spread(&self) -> [f64; 2] {
        let least = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        [least, self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
    }

    fn to_cell(&self) -> String {
        let [least, greatest] = self.spread().map(round);
        format!("{} ({least}–{greatest})", round(self.median()))
    }
}

/// More digits than that are noise.
fn round(value: f64) -> f64 {
    let scale = match value.abs() {
        large if large >= 100.0 => 1.0,
        medium if medium >= 10.0 => 10.0,
        _ => 1000.0,
    };
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_are_of_all_rounds() {
        let mut figures = Figures::default();
        for value in [3.0, 1.0, 2.0, 100.0] {
            figures.note(RINGFORT, "rate", "1/s", value);
        }
        figures.condition("host", "a test");
        let json = figures.to_json();
        assert_eq!(json["ringfort"]["rate"], 2.5);
        assert_eq!(json["spread"]["ringfort"]["rate"], json!([1.0, 100.0]));
        assert_eq!(json["conditions"]["host"], "a test");
        assert!(figures.to_table().contains("2.5 (1–100)"));
    }

    #[test]
    fn each_subject_has_its_own_object_and_column_and_absence_its_reason() {
        let mut figures = Figures::default();
        figures.note(RINGFORT, "rate", "1/s", 7.0);
        figures.note("rival", "rate", "1/s", 5.0);
        figures.note(RINGFORT, "bytes", "", 1.5);
        figures.leave_out("other", "needs root");
        let json = figures.to_json();
        assert_eq!(json["rival"], json!({ "rate": 5.0 }));
        assert_eq!(json["left_out"]["other"], "needs root");
        let table = figures.to_table();
        let row = table.lines().find(|line| line.starts_with("rate")).unwrap_or_default();
        assert!(row.contains("7 (7–7)") && row.contains("5 (5–5)"), "{table}");
        assert!(table.contains("other is left out: needs root"));
    }
}
