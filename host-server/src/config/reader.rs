//! Reads one table of a settings file key by key, so that every fault is told with its line, and every key that nobody
//! asked for with the nearest that somebody did.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Origin, Setting};

/// A file's text, and where it came from.
pub struct Source<'a> {
    pub path: Arc<PathBuf>,
    pub text: &'a str,
}

impl Source<'_> {
    /// 1 for the first.
    pub fn line_of(&self, offset_bytes: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset_bytes);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    pub fn origin(&self, offset_bytes: usize) -> Origin {
        Origin::ConfigFile { path: Arc::clone(&self.path), line: self.line_of(offset_bytes) }
    }

    /// A fault at a place of the file.
    pub fn fault(&self, offset_bytes: usize, found: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}, line {}: {found}", self.path.display(), self.line_of(offset_bytes))
    }
}

/// A table whose keys are taken one by one.
pub struct Section<'a> {
    source: &'a Source<'a>,
    table: DeTable<'a>,
    /// Every key that was asked for.
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn new(source: &'a Source<'a>, table: DeTable<'a>) -> Self {
        Self { source, table, known: Vec::new() }
    }

    /// The value of `key`, if it is there.
    pub fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'a>>> {
        self.known.push(key);
        let (name, _) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        let name = name.clone();
        self.table.remove(&name)
    }

    /// A string in the form that its type has on the command line, too.
    pub fn text<T>(&mut self, key: &'static str) -> Result<Option<Setting<T>>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        self.setting(key, "a string", |value| {
            value.as_str().map(|text| text.parse().map_err(|error: T::Err| error.to_string()))
        })
    }

    /// A string, or a list of them, each in the form that its type has on the command line.
    pub fn texts<T>(&mut self, key: &'static str) -> Result<Vec<Setting<T>>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let Some(value) = self.take(key) else { return Ok(Vec::new()) };
        let one = |value: &Spanned<DeValue<'_>>| {
            let (start, found) = (value.span().start, value.get_ref());
            let wrong =
                || self.source.fault(start, format!("{key} is of type {}; write strings", found.type_str()));
            let read = found.as_str().ok_or_else(wrong)?.parse();
            let value = read.map_err(|error: T::Err| self.source.fault(start, format!("{key}: {error}")))?;
            Ok(Setting::new(value, self.source.origin(start)))
        };
        match value.get_ref() {
            DeValue::Array(array) => array.iter().map(one).collect(),
            _ => Ok(vec![one(&value)?]),
        }
    }

    pub fn flag(&mut self, key: &'static str) -> Result<Option<Setting<bool>>> {
        self.setting(key, "true or false", |value| value.as_bool().map(Ok))
    }

    pub fn integer(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<Setting<u64>>> {
        let (least, most) = (*bounds.start(), *bounds.end());
        self.setting(key, "a whole number", |value| {
            let integer = value.as_integer()?;
            let number = u64::from_str_radix(integer.as_str(), integer.radix());
            Some(match number {
                Ok(number) if bounds.contains(&number) => Ok(number),
                _ => Err(format!("{integer} is outside of {least} to {most}")),
            })
        })
    }

    /// A path; a relative one follows `base`.
    pub fn path(&mut self, key: &'static str, base: &Path) -> Result<Option<Setting<PathBuf>>> {
        self.setting(key, "a path in quotes", |value| {
            value.as_str().map(|text| match text {
                "" => Err("the path is empty".to_owned()),
                text => Ok(base.join(text)),
            })
        })
    }

    /// `read` gives None for a value of another type than `wanted` says.
    fn setting<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&DeValue<'_>) -> Option<Result<T, String>>,
    ) -> Result<Option<Setting<T>>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let start = value.span().start;
        match read(value.get_ref()) {
            Some(Ok(value)) => Ok(Some(Setting::new(value, self.source.origin(start)))),
            Some(Err(reason)) => Err(self.source.fault(start, format!("{key}: {reason}"))),
            None => {
                let found = value.get_ref().type_str();
                Err(self.source.fault(start, format!("{key} is of type {found}; write {wanted}")))
            }
        }
    }

    /// Refuses what nobody asked for, first of all the keys in `elsewhere`, each with the reason.
    pub fn finish(self, elsewhere: &[(&str, &str)]) -> Result<()> {
        let Some((name, _)) = self.table.iter().min_by_key(|(name, _)| name.span().start) else {
            return Ok(());
        };
        let (key, start) = (name.get_ref().as_ref(), name.span().start);
        if let Some((_, reason)) = elsewhere.iter().find(|(other, _)| *other == key) {
            return Err(self.source.fault(start, format!("{key} cannot be set here: {reason}")));
        }
        Err(self.source.fault(start, format!("unknown key {key:?}; {}", advice(key, &self.known))))
    }
}

/// What was meant, if something is near; else what there is.
fn advice(key: &str, known: &[&str]) -> String {
    let distance = |candidate: &str| strsim::damerau_levenshtein(&key.to_lowercase(), candidate);
    match known.iter().min_by_key(|candidate| distance(candidate)) {
        Some(nearest) if distance(nearest) <= 1 + nearest.len() / 3 => format!("did you mean {nearest:?}?"),
        nearest => format!(
            "the nearest known is {:?}, all are: {}",
            nearest.copied().unwrap_or_default(),
            known.join(", ")
        ),
    }
}

/// The tables of an array of tables.
pub fn tables<'a>(
    source: &Source<'_>,
    key: &str,
    value: Spanned<DeValue<'a>>,
) -> Result<Vec<(usize, DeTable<'a>)>> {
    let start = value.span().start;
    let wrong = |at| source.fault(at, format!("{key} is a list of tables: write [[{key}]] above each"));
    let DeValue::Array(array) = value.into_inner() else { bail!(wrong(start)) };
    array
        .into_iter()
        .map(|element| {
            let start = element.span().start;
            match element.into_inner() {
                DeValue::Table(table) => Ok((start, table)),
                _ => Err(wrong(start)),
            }
        })
        .collect()
}

/// The whole file as a table.
pub fn parse<'a>(source: &Source<'a>) -> Result<DeTable<'a>> {
    match DeTable::parse(source.text) {
        Ok(table) => Ok(table.into_inner()),
        Err(error) => {
            let start = error.span().map_or(0, |span| span.start);
            Err(source.fault(start, error.message()))
        }
    }
}
