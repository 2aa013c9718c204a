//! `K+M`.

use std::str::FromStr;

/// Data and parity columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub data: u8,
    pub parity: u8,
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('+').and_then(|(data, parity)| {
            Some(Columns { data: data.trim().parse().ok()?, parity: parity.trim().parse().ok()? })
        });
        match parsed {
            Some(columns @ Columns { data: 1..=16, parity: 0..=3 }) => Ok(columns),
            Some(Columns { data, parity }) => Err(format!(
                "{data}+{parity} is outside the bounds: 1 to 16 data columns and 0 to 3 parity columns, such as 4+2"
            )),
            None => Err(format!("{text:?} is not K+M; write data and parity columns, such as 4+2")),
        }
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_outside_the_bounds_are_refused() {
        assert_eq!("4+2".parse(), Ok(Columns { data: 4, parity: 2 }));
        for text in ["4", "4+", "0+2", "17+2", "4+4", "4+2+1", "-1+2"] {
            assert!(text.parse::<Columns>().is_err(), "{text}");
        }
    }
}
