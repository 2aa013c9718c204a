//! Permissions and owners, as people write them.

use std::fs;
use std::str::FromStr;

/// What a mode does to permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    Exactly(u32),
    Changes(Vec<Change>),
}

/// One of the parts between commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Bits of those whom it is about.
    who: u32,
    how: char,
    permissions: u32,
    /// `X`: execution, where it is a directory or somebody may execute it.
    search: bool,
}

impl Mode {
    /// What permissions become.
    pub fn apply(&self, permissions: u32, directory: bool) -> u32 {
        let changes = match self {
            Self::Exactly(permissions) => return *permissions,
            Self::Changes(changes) => changes,
        };
        changes.iter().fold(permissions, |permissions, change| {
            let searched = change.search && (directory || permissions & 0o111 != 0);
            let bits = change.who & (change.permissions | if searched { 0o111 } else { 0 });
            match change.how {
                '+' => permissions | bits,
                '-' => permissions & !bits,
                // A directory keeps set-id bits that nobody speaks of.
                _ => permissions & !(change.who & if directory { 0o1777 } else { 0o7777 }) | bits,
            }
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no mode: say 644, or u+x,go-w");
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
            return if mode <= 0o7777 { Ok(Self::Exactly(mode)) } else { Err(wrong()) };
        }
        text.split(',')
            .map(|part| change(part).ok_or_else(wrong))
            .collect::<Result<_, _>>()
            .map(Self::Changes)
    }
}

fn change(text: &str) -> Option<Change> {
    let at = text.find(['+', '-', '='])?;
    let (who, rest) = text.split_at(at);
    let mut letters = rest.chars();
    let how = letters.next()?;
    let who = match who {
        "" => 0o7777,
        who => who.chars().try_fold(0, |bits, letter| {
            Some(
                bits | match letter {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return None,
                },
            )
        })?,
    };
    let (mut permissions, mut search) = (0, false);
    for letter in letters {
        permissions |= match letter {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            's' => 0o6000,
            't' => 0o1000,
            'X' => {
                search = true;
                0
            }
            _ => return None,
        };
    }
    // The sticky bit is nobody's in particular.
    let who = if permissions & 0o1000 != 0 { who | 0o1000 } else { who };
    Some(Change { who, how, permissions, search })
}

/// Whom files are to belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() && group.is_empty() {
            return Err(format!("{text:?} names nobody: say USER, USER:GROUP or :GROUP"));
        }
        let find = |name: &str, file| match name {
            "" => Ok(None),
            name => number(name, &fs::read_to_string(file).unwrap_or_default())
                .map(Some)
                .ok_or_else(|| format!("{name} is no number, and no name in {file}")),
        };
        Ok(Self { uid: find(user, "/etc/passwd")?, gid: find(group, "/etc/group")? })
    }
}

/// A number, or that of a name: both files have it in the third field.
fn number(name: &str, file: &str) -> Option<u32> {
    let listed = || {
        file.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1))?
        })
    };
    name.parse().ok().or_else(|| listed()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_do_to_permissions_what_chmod_does() {
        let apply =
            |mode: &str, permissions, directory| mode.parse::<Mode>().unwrap().apply(permissions, directory);
        assert_eq!(apply("4755", 0o600, false), 0o4755);
        assert_eq!(apply("u+x,go-w", 0o666, false), 0o744);
        assert_eq!(apply("+x", 0o644, false), 0o755);
        assert_eq!(apply("-w", 0o644, false), 0o444);
        assert_eq!(apply("go=", 0o777, false), 0o700);
        assert_eq!(apply("a=rX", 0o600, false), 0o444);
        assert_eq!(apply("a=rX", 0o600, true), 0o555);
        assert_eq!(apply("u+s,+t", 0o755, false), 0o5755);
        for wrong in ["", "9", "10000", "u", "u+q", "z+x", "u+x,"] {
            assert!(wrong.parse::<Mode>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn owners_are_numbers_or_names() {
        let files = "root:x:0:0:root:/root:/bin/sh\nmail:x:8:12::/:\n";
        assert_eq!(number("mail", files), Some(8));
        assert_eq!(number("77", files), Some(77));
        assert_eq!(number("nobody", files), None);
        assert_eq!("5:6".parse(), Ok(Owner { uid: Some(5), gid: Some(6) }));
        assert_eq!(":6".parse(), Ok(Owner { uid: None, gid: Some(6) }));
        assert!(":".parse::<Owner>().is_err());
    }
}
