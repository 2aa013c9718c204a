//! Figures of Ringfort and its rivals, each with every round's value.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Whom a figure is of: a key of the JSON object, a column of the table.
pub type Subject = &'static str;

pub const RINGFORT: Subject = "ringfort";

/// What a figure is called; the same for all subjects.
pub type Name = Cow<'static, str>;

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// No more than so many times a rival's.
    TimesAtMost(f64, Subject),
    /// No less than so many times a rival's.
    TimesAtLeast(f64, Subject),
    /// No less than so many times another figure of the same subject.
    TimesOwnAtLeast(f64, &'static str),
    /// No more than so many times another figure of the same subject.
    TimesOwnAtMost(f64, &'static str),
    /// No more than a value.
    AtMost(f64),
    /// No less than a value.
    AtLeast(f64),
}

/// One figure of one subject: its samples and what they count.
struct Figure {
    subject: Subject,
    name: Name,
    unit: &'static str,
    samples: Vec<f64>,
}

/// What a topic has measured, in the order in which it was first noted.
#[derive(Default)]
pub struct Figures {
    figures: Vec<Figure>,
    facts: Vec<(&'static str, String)>,
    conditions: Vec<(&'static str, String)>,
    goals: Vec<(Subject, Name, Goal)>,
    left_out: Vec<(Subject, String)>,
}

impl Figures {
    pub fn note(&mut self, subject: Subject, name: impl Into<Name>, unit: &'static str, value: f64) {
        let name = name.into();
        let known = |figure: &&mut Figure| figure.subject == subject && figure.name == name;
        match self.figures.iter_mut().find(known) {
            Some(figure) => figure.samples.push(value),
            None => self.figures.push(Figure { subject, name, unit, samples: vec![value] }),
        }
    }

    /// What the figure of a subject is to reach. Judged by medians; a rival that is left out judges nobody.
    pub fn goal(&mut self, subject: Subject, name: impl Into<Name>, goal: Goal) {
        let goal = (subject, name.into(), goal);
        if !self.goals.contains(&goal) {
            self.goals.push(goal);
        }
    }

    /// Something that programs look for: a key of its own in the JSON object.
    pub fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        self.facts.push((name, value.into()));
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

    fn median_of(&self, subject: Subject, name: &Name) -> Option<f64> {
        let found = |figure: &&Figure| figure.subject == subject && figure.name == *name;
        self.figures.iter().find(found).map(|figure| median(figure.samples.clone()))
    }

    /// The goals that can be judged.
    fn verdicts(&self) -> Vec<Verdict<'_>> {
        let judge = |(subject, name, goal): &'_ (Subject, Name, Goal)| {
            let own = self.median_of(subject, name)?;
            let value = match *goal {
                Goal::TimesAtMost(_, rival) | Goal::TimesAtLeast(_, rival) => {
                    own / self.median_of(rival, name)?
                }
                Goal::TimesOwnAtLeast(_, other) | Goal::TimesOwnAtMost(_, other) => {
                    own / self.median_of(subject, &other.into())?
                }
                Goal::AtMost(_) | Goal::AtLeast(_) => own,
            };
            Some((value, goal.is_met_by(value)))
        };
        let judged = self.goals.iter().filter_map(|of| judge(of).map(|judged| (of, judged)));
        judged
            .map(|((subject, name, goal), (value, met))| Verdict { subject, name, goal: *goal, value, met })
            .collect()
    }

    /// `{SUBJECT: {FIGURE: MEDIAN}, "spread": {SUBJECT: {FIGURE: [LEAST, GREATEST]}}, "goals": […], "conditions": {…},
    /// "left_out": {…}}`, and a key for each fact.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let mut spreads = Map::new();
        for subject in self.subjects() {
            let of_subject = || self.figures.iter().filter(|figure| figure.subject == subject);
            let medians: Map<_, _> =
                of_subject().map(|figure| (figure.name.to_string(), json!(round(figure.median())))).collect();
            let spread: Map<_, _> = of_subject()
                .map(|figure| (figure.name.to_string(), json!(figure.spread().map(round))))
                .collect();
            all.insert(subject.to_owned(), Value::Object(medians));
            spreads.insert(subject.to_owned(), Value::Object(spread));
        }
        let conditions: Map<_, _> =
            self.conditions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let left_out: Map<_, _> =
            self.left_out.iter().map(|(subject, reason)| ((*subject).to_owned(), json!(reason))).collect();
        for (name, value) in &self.facts {
            all.insert((*name).to_owned(), json!(value));
        }
        all.insert("spread".to_owned(), Value::Object(spreads));
        all.insert("goals".to_owned(), self.verdicts().iter().map(Verdict::to_json).collect());
        all.insert("conditions".to_owned(), Value::Object(conditions));
        all.insert("left_out".to_owned(), Value::Object(left_out));
        Value::Object(all)
    }

    /// A row for each figure, a column for each subject: median, least and greatest.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        // Writing to a string cannot fail.
        for (name, value) in self.facts.iter().chain(&self.conditions) {
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
        let verdicts = self.verdicts();
        let mut shown: Vec<&Name> = Vec::new();
        for first in &self.figures {
            if shown.contains(&&first.name) {
                continue;
            }
            shown.push(&first.name);
            let _ = write!(table, "{:<44}", first.name);
            for subject in &subjects {
                let of = |figure: &&Figure| figure.subject == *subject && figure.name == first.name;
                let cell = self.figures.iter().find(of).map(Figure::to_cell).unwrap_or_default();
                let _ = write!(table, " {cell:>24}");
            }
            let _ = write!(table, "  {:<6}", first.unit);
            for verdict in verdicts.iter().filter(|verdict| *verdict.name == first.name) {
                let _ = write!(table, "  {}", verdict.to_cell());
            }
            table.push('\n');
        }
        let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
        if !verdicts.is_empty() {
            let _ = writeln!(table, "\n{} of {} goals met", verdicts.len() - missed, verdicts.len());
        }
        table
    }
}

impl Goal {
    /// The rival, or the figure of the same subject, that it is a multiple of.
    fn beside(self) -> Option<&'static str> {
        match self {
            Goal::TimesAtMost(_, other)
            | Goal::TimesAtLeast(_, other)
            | Goal::TimesOwnAtLeast(_, other)
            | Goal::TimesOwnAtMost(_, other) => Some(other),
            Goal::AtMost(_) | Goal::AtLeast(_) => None,
        }
    }

    fn bound(self) -> f64 {
        match self {
            Goal::TimesAtMost(bound, _)
            | Goal::TimesAtLeast(bound, _)
            | Goal::TimesOwnAtLeast(bound, _)
            | Goal::TimesOwnAtMost(bound, _)
            | Goal::AtMost(bound)
            | Goal::AtLeast(bound) => bound,
        }
    }

    fn is_upper(self) -> bool {
        matches!(self, Goal::TimesAtMost(..) | Goal::TimesOwnAtMost(..) | Goal::AtMost(_))
    }

    fn is_met_by(self, value: f64) -> bool {
        if self.is_upper() { value <= self.bound() } else { value >= self.bound() }
    }
}

/// A goal beside what was measured.
struct Verdict<'a> {
    subject: Subject,
    name: &'a Name,
    goal: Goal,
    /// The ratio to what it is judged beside, or the figure where that is nothing.
    value: f64,
    met: bool,
}

impl Verdict<'_> {
    fn to_json(&self) -> Value {
        let mut verdict = json!({ "subject": self.subject, "figure": self.name, "met": self.met });
        let bound = if self.goal.is_upper() { "at_most" } else { "at_least" };
        verdict[bound] = json!(self.goal.bound());
        match self.goal.beside() {
            Some(other) => {
                verdict["beside"] = json!(other);
                verdict["ratio"] = json!(round(self.value));
            }
            None => verdict["value"] = json!(round(self.value)),
        }
        verdict
    }

    fn to_cell(&self) -> String {
        let sign = if self.goal.is_upper() { '≤' } else { '≥' };
        let verdict = if self.met { "met" } else { "MISSED" };
        let value = round(self.value);
        let bound = self.goal.bound();
        match self.goal.beside() {
            Some(other) => format!("{value} × {other} ({sign} {bound}: {verdict})"),
            None => format!("({sign} {bound}: {verdict})"),
        }
    }
}

impl Figure {
    fn median(&self) -> f64 {
        median(self.samples.clone())
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

/// The middle sample, or the mean of the middle two.
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => samples[middle],
        _ => (samples[middle - 1] + samples[middle]) / 2.0,
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

    #[test]
    fn goals_are_judged_by_medians_and_only_where_the_rival_was_measured() {
        let mut figures = Figures::default();
        for (ours, theirs) in [(4.0, 2.0), (5.0, 2.0), (100.0, 2.0)] {
            figures.note(RINGFORT, "time", "s", ours);
            figures.note("rival", "time", "s", theirs);
        }
        figures.goal(RINGFORT, "time", Goal::TimesAtMost(2.5, "rival"));
        figures.goal(RINGFORT, "time", Goal::TimesAtLeast(3.0, "rival"));
        figures.goal(RINGFORT, "time", Goal::AtMost(4.9));
        figures.goal(RINGFORT, "time", Goal::TimesAtMost(1.0, "absent"));
        // Said in each round, judged once.
        figures.goal(RINGFORT, "time", Goal::AtMost(4.9));
        let json = figures.to_json();
        let goals = json["goals"].as_array().unwrap();
        assert_eq!(
            goals[0],
            json!({"subject": "ringfort", "figure": "time", "met": true, "at_most": 2.5, "beside": "rival", "ratio": 2.5})
        );
        assert_eq!(goals.iter().map(|goal| goal["met"] == true).collect::<Vec<_>>(), [true, false, false]);
        let table = figures.to_table();
        assert!(table.contains("2.5 × rival (≤ 2.5: met)") && table.contains("(≤ 4.9: MISSED)"), "{table}");
        assert!(table.ends_with("1 of 3 goals met\n"), "{table}");
    }

    #[test]
    fn a_figure_is_judged_beside_another_of_the_same_subject() {
        let mut figures = Figures::default();
        figures.note(RINGFORT, "healthy", "MB/s", 200.0);
        figures.note(RINGFORT, "degraded", "MB/s", 100.0);
        figures.note("rival", "healthy", "MB/s", 1.0);
        figures.goal(RINGFORT, "degraded", Goal::TimesOwnAtLeast(0.5, "healthy"));
        figures.goal(RINGFORT, "degraded", Goal::TimesOwnAtLeast(0.51, "healthy"));
        figures.goal(RINGFORT, "degraded", Goal::TimesOwnAtLeast(0.1, "absent"));
        let json = figures.to_json();
        let goals = json["goals"].as_array().unwrap();
        assert_eq!(
            goals[0],
            json!({"subject": "ringfort", "figure": "degraded", "met": true, "at_least": 0.5, "beside": "healthy", "ratio": 0.5})
        );
        assert_eq!(goals.iter().map(|goal| goal["met"] == true).collect::<Vec<_>>(), [true, false]);
        assert!(figures.to_table().contains("0.5 × healthy (≥ 0.51: MISSED)"));
    }
}
