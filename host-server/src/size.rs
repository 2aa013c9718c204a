//! Byte counts as people write them: `8GiB`, `1.5 TiB`, `500 MB`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes given on the command line or in a settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// Units by name, in bytes. Binary units first: [`ByteSize`] prints with those.
const UNITS: [(&str, u64); 13] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
    ("bytes", 1),
    ("", 1),
];
const BINARY_UNITS: usize = 5;

/// Why a size was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("{0:?} is not a size; write a number and a unit, such as 8GiB, 512MiB or 2TB")]
    NotASize(String),
    #[error("{size:?} has an unknown unit {unit:?}; use B, KiB, MiB, GiB, TiB, PiB or KB, MB, GB, TB, PB")]
    UnknownUnit { size: String, unit: String },
    #[error("{0:?} is not a whole number of bytes")]
    Fraction(String),
    #[error("{0:?} is more bytes than 64 bits can count")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = unit.trim();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let not_a_size = || SizeError::NotASize(text.to_owned());
        if whole.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) || fraction.len() > 12 {
            return Err(not_a_size());
        }
        let Some((_, unit_bytes)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return Err(SizeError::UnknownUnit { size: text.to_owned(), unit: unit.to_owned() });
        };
        let too_large = || SizeError::TooLarge(text.to_owned());
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let mut bytes = u128::from(whole) * u128::from(*unit_bytes);
        if !fraction.is_empty() {
            let numerator: u128 = fraction.parse().map_err(|_| not_a_size())?;
            let denominator = 10u128.pow(fraction.len() as u32);
            let scaled = numerator * u128::from(*unit_bytes);
            if !scaled.is_multiple_of(denominator) {
                return Err(SizeError::Fraction(text.to_owned()));
            }
            bytes += scaled / denominator;
        }
        u64::try_from(bytes).map(ByteSize).map_err(|_| too_large())
    }
}

impl TryFrom<String> for ByteSize {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    /// Exact: parses back to the same number of bytes.
    fn from(size: ByteSize) -> String {
        let exact =
            UNITS[..BINARY_UNITS].iter().find(|(_, unit)| size.0 != 0 && size.0.is_multiple_of(*unit));
        match exact {
            Some((name, unit)) => format!("{}{name}", size.0 / unit),
            None => format!("{}B", size.0),
        }
    }
}

impl fmt::Display for ByteSize {
    /// For people: three digits or so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS[..BINARY_UNITS].iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0.is_multiple_of(*unit) => write!(f, "{} {name}", self.0 / unit),
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5TiB", 3 << 39),
            ("500MB", 500_000_000),
            ("4096", 4096),
            ("0", 0),
            (" 12 KiB ", 12 << 10),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for text in ["", "GiB", "-1GiB", ".5GiB", "1.2.3GiB", "1.0000000000001GiB"] {
            assert!(matches!(text.parse::<ByteSize>(), Err(SizeError::NotASize(_))), "{text}");
        }
        assert!(matches!("8GiG".parse::<ByteSize>(), Err(SizeError::UnknownUnit { .. })));
        assert!(matches!("8GB/s".parse::<ByteSize>(), Err(SizeError::UnknownUnit { .. })));
        assert!(matches!("0.5".parse::<ByteSize>(), Err(SizeError::Fraction(_))));
        assert!(matches!("99999999PiB".parse::<ByteSize>(), Err(SizeError::TooLarge(_))));
        assert!(matches!("99999999999999999999999".parse::<ByteSize>(), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn settings_files_keep_every_byte() {
        for bytes in [0, 1, 1023, 1 << 30, (1 << 30) + 1, 3 << 39, u64::MAX] {
            let text = String::from(ByteSize(bytes));
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn people_see_few_digits() {
        assert_eq!(ByteSize(8 << 30).to_string(), "8 GiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(17).to_string(), "17 B");
    }
}
