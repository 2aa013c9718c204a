//! Figures, each with every round's value.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// One figure: its samples and what they count.
struct Figure {
    name: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
}

/// What a topic has measured, in the order in which it was first noted.
#[derive(Default)]
pub struct Figures {
    figures: Vec<Figure>,
    conditions: Vec<(&'static str, String)>,
}

impl Figures {
    pub fn note(&mut self, name: &'static str, unit: &'static str, value: f64) {
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.samples.push(value),
            None => self.figures.push(Figure { name, unit, samples: vec![value] }),
        }
    }

    /// Something a reader must know to judge the figures.
    pub fn condition(&mut self, name: &'static str, value: impl Into<String>) {
        self.conditions.push((name, value.into()));
    }

    pub fn to_json(&self) -> Value {
        let mut medians = Map::new();
        let mut spreads = Map::new();
        for figure in &self.figures {
            medians.insert(figure.name.to_owned(), json!(round(figure.median())));
            let (least, greatest) = figure.spread();
            spreads.insert(figure.name.to_owned(), json!([round(least), round(greatest)]));
        }
        let conditions: Map<_, _> =
            self.conditions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "ringfort": medians, "spread": spreads, "conditions": conditions })
    }

    pub fn to_table(&self) -> String {
        let mut table = String::new();
        for (name, value) in &self.conditions {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{name}: {value}");
        }
        let _ = writeln!(table, "\n{:<40} {:>12} {:>12} {:>12}", "", "median", "least", "greatest");
        for figure in &self.figures {
            let (least, greatest) = figure.spread();
            let [median, least, greatest] =
                [figure.median(), least, greatest].map(|value| shown(round(value)));
            let _ = writeln!(
                table,
                "{:<40} {median:>12} {least:>12} {greatest:>12}  {}",
                figure.name, figure.unit
            );
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

    fn spread(&self) -> (f64, f64) {
        let least = self.samples.iter().copied().fold(f64::INFINITY, f64::min);
        (least, self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max))
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

fn shown(value: f64) -> String {
    format!("{value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_are_of_all_rounds() {
        let mut figures = Figures::default();
        for value in [3.0, 1.0, 2.0, 100.0] {
            figures.note("rate", "1/s", value);
        }
        figures.condition("host", "a test");
        let json = figures.to_json();
        assert_eq!(json["ringfort"]["rate"], 2.5);
        assert_eq!(json["spread"]["rate"], json!([1.0, 100.0]));
        assert_eq!(json["conditions"]["host"], "a test");
        assert!(figures.to_table().contains("2.5"));
    }
}
