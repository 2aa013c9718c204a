//! POSIX access control lists: what they grant, how a list and a mode follow each other, how directories hand them down.
//!
//! The rules are those of the withdrawn POSIX 1003.1e draft 17 as Linux keeps them: the nine bits of the mode are the entries of
//! the owner, of the group class (the mask, or the owning group where there is none) and of others.

use ringfort_store::format::acl::{self as format, AclEntry, NO_ID, tag};

use crate::errno::Errno;
use crate::operation::Credentials;

const ANY_PERMISSION: u16 = 7;

/// Which of the two lists of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AclKind {
    /// Who may use the inode.
    Access,
    /// What is handed down to what is made in a directory.
    Default,
}

impl AclKind {
    /// The kind that an extended attribute stands for.
    pub fn named(xattr: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| kind.xattr_name() == xattr)
    }

    pub fn xattr_name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }
}

/// A list that is sound: every class has its entry, and there is a mask where anybody is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl {
    owner: u8,
    users: Vec<Named>,
    group: u8,
    groups: Vec<Named>,
    mask: Option<u8>,
    others: u8,
}

/// What a user or group that is named may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    id: u32,
    permissions: u8,
}

impl Acl {
    /// Reads the value of an extended attribute. None for no value or no entries, which stand for no list; `EINVAL` for one
    /// that is not sound, `EOPNOTSUPP` for a layout of another version.
    pub fn decode(value: &[u8]) -> Result<Option<Self>, Errno> {
        if value.is_empty() {
            return Ok(None);
        }
        let entries = match format::decode(value) {
            Ok(entries) => entries,
            Err(ringfort_store::format::filesystem::ValueError::OutOfRange { .. }) => {
                return Err(Errno::EOPNOTSUPP);
            }
            Err(_) => return Err(Errno::EINVAL),
        };
        if entries.is_empty() {
            return Ok(None);
        }
        let mut rest = entries.as_slice();
        let owner = one(&mut rest, tag::OWNER)?.ok_or(Errno::EINVAL)?;
        let users = named(&mut rest, tag::USER)?;
        let group = one(&mut rest, tag::OWNING_GROUP)?.ok_or(Errno::EINVAL)?;
        let groups = named(&mut rest, tag::GROUP)?;
        let mask = one(&mut rest, tag::MASK)?;
        let others = one(&mut rest, tag::OTHERS)?.ok_or(Errno::EINVAL)?;
        let names_anybody = !users.is_empty() || !groups.is_empty();
        if !rest.is_empty() || (names_anybody && mask.is_none()) {
            return Err(Errno::EINVAL);
        }
        Ok(Some(Self { owner, users, group, groups, mask, others }))
    }

    /// The value of the extended attribute.
    pub fn encode(&self) -> Vec<u8> {
        let entry = |tag, permissions: u8, id| AclEntry { tag, permissions: permissions.into(), id };
        let mut entries = vec![entry(tag::OWNER, self.owner, NO_ID)];
        entries.extend(self.users.iter().map(|user| entry(tag::USER, user.permissions, user.id)));
        entries.push(entry(tag::OWNING_GROUP, self.group, NO_ID));
        entries.extend(self.groups.iter().map(|group| entry(tag::GROUP, group.permissions, group.id)));
        entries.extend(self.mask.map(|mask| entry(tag::MASK, mask, NO_ID)));
        entries.push(entry(tag::OTHERS, self.others, NO_ID));
        format::encode(&entries)
    }

    /// Whether a mode says all that the list says.
    pub fn is_minimal(&self) -> bool {
        self.mask.is_none()
    }

    /// The nine permission bits that stand for the list.
    pub fn permissions(&self) -> u16 {
        u16::from(self.owner) << 6 | u16::from(self.group_class()) << 3 | u16::from(self.others)
    }

    /// The list after its inode's permission bits were set.
    pub fn with_permissions(&self, permissions: u16) -> Self {
        let [owner, group_class, others] = classes(permissions);
        let mut acl = Self { owner, others, ..self.clone() };
        *acl.group_class_mut() = group_class;
        acl
    }

    /// What an inode gets that is made, with the permission bits that its maker asks for, in a directory whose default list
    /// this is. The umask has no say.
    pub fn handed_down(&self, permissions: u16) -> Self {
        let [owner, group_class, others] = classes(permissions);
        let mut acl = self.clone();
        acl.owner &= owner;
        acl.others &= others;
        *acl.group_class_mut() &= group_class;
        acl
    }

    /// Whether the caller, on an inode of `uid` and `gid`, is granted all of `mask`.
    pub fn grants(&self, credentials: &Credentials, uid: u32, gid: u32, mask: u8) -> bool {
        let allows = |permissions: u8| permissions & mask == mask;
        let within_mask = allows(self.mask.unwrap_or(ANY_PERMISSION as u8));
        if credentials.uid == uid {
            return allows(self.owner);
        }
        if let Some(user) = self.users.iter().find(|user| user.id == credentials.uid) {
            return allows(user.permissions) && within_mask;
        }
        let owning = credentials.in_group(gid).then_some(self.group);
        let named = self.groups.iter().filter(|group| credentials.in_group(group.id));
        let mut of_groups = owning.into_iter().chain(named.map(|group| group.permissions)).peekable();
        if of_groups.peek().is_some() {
            // One of them alone must grant it all.
            return of_groups.any(allows) && within_mask;
        }
        allows(self.others)
    }

    fn group_class(&self) -> u8 {
        self.mask.unwrap_or(self.group)
    }

    fn group_class_mut(&mut self) -> &mut u8 {
        self.mask.as_mut().unwrap_or(&mut self.group)
    }
}

/// Owner, group and others of a mode.
fn classes(permissions: u16) -> [u8; 3] {
    [6, 3, 0].map(|shift| (permissions >> shift & ANY_PERMISSION) as u8)
}

/// Takes the entry with `tag` off the front, if it is there.
fn one(entries: &mut &[AclEntry], tag: u16) -> Result<Option<u8>, Errno> {
    let Some((first, rest)) = entries.split_first().filter(|(first, _)| first.tag == tag) else {
        return Ok(None);
    };
    *entries = rest;
    permissions(first).map(Some)
}

/// Takes the entries with `tag` off the front.
fn named(entries: &mut &[AclEntry], tag: u16) -> Result<Vec<Named>, Errno> {
    let count = entries.iter().take_while(|entry| entry.tag == tag).count();
    let (taken, rest) = entries.split_at(count);
    *entries = rest;
    let named = |entry: &AclEntry| match entry.id {
        NO_ID => Err(Errno::EINVAL),
        id => Ok(Named { id, permissions: permissions(entry)? }),
    };
    taken.iter().map(named).collect()
}

fn permissions(entry: &AclEntry) -> Result<u8, Errno> {
    if entry.permissions > ANY_PERMISSION { Err(Errno::EINVAL) } else { Ok(entry.permissions as u8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl() -> Acl {
        Acl {
            owner: 7,
            users: vec![Named { id: 10, permissions: 6 }],
            group: 5,
            groups: vec![Named { id: 20, permissions: 2 }, Named { id: 21, permissions: 4 }],
            mask: Some(6),
            others: 1,
        }
    }

    fn caller(uid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid: 999, groups: groups.to_vec(), check_permissions: true }
    }

    fn entry(tag: u16, permissions: u16, id: u32) -> AclEntry {
        AclEntry { tag, permissions, id }
    }

    #[test]
    fn a_list_survives_storage() {
        assert_eq!(Acl::decode(&acl().encode()), Ok(Some(acl())));
        assert_eq!(Acl::decode(&format::encode(&[])), Ok(None));
        assert_eq!(Acl::decode(&[]), Ok(None));
    }

    #[test]
    fn lists_that_are_not_sound_are_refused() {
        let minimal =
            [entry(tag::OWNER, 6, NO_ID), entry(tag::OWNING_GROUP, 4, NO_ID), entry(tag::OTHERS, 0, NO_ID)];
        assert!(Acl::decode(&format::encode(&minimal)).unwrap().unwrap().is_minimal());
        let with = |at: usize, new: AclEntry| {
            let mut entries = minimal.to_vec();
            entries.insert(at, new);
            Acl::decode(&format::encode(&entries))
        };
        assert_eq!(with(1, entry(tag::USER, 6, 5)), Err(Errno::EINVAL), "somebody named, no mask");
        assert_eq!(with(2, entry(tag::MASK, 8, NO_ID)), Err(Errno::EINVAL), "a permission that is none");
        assert_eq!(with(0, entry(tag::OTHERS, 0, NO_ID)), Err(Errno::EINVAL), "out of order");
        assert_eq!(with(3, entry(tag::OTHERS, 0, NO_ID)), Err(Errno::EINVAL), "twice");
        assert_eq!(with(1, entry(0x40, 0, NO_ID)), Err(Errno::EINVAL), "no such tag");
        assert_eq!(with(1, entry(tag::USER, 6, NO_ID)), Err(Errno::EINVAL), "nobody named");
        for left_out in 0..3 {
            let mut entries = minimal.to_vec();
            entries.remove(left_out);
            assert_eq!(Acl::decode(&format::encode(&entries)), Err(Errno::EINVAL), "without {left_out}");
        }
        assert_eq!(Acl::decode(&[3, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
        assert_eq!(Acl::decode(b"abc"), Err(Errno::EINVAL));
    }

    #[test]
    fn the_mode_stands_for_owner_mask_and_others() {
        assert_eq!(acl().permissions(), 0o761);
        let changed = acl().with_permissions(0o640);
        assert_eq!((changed.owner, changed.mask, changed.group, changed.others), (6, Some(4), 5, 0));
        let minimal = Acl { users: vec![], groups: vec![], mask: None, ..acl() };
        assert_eq!(minimal.permissions(), 0o751);
        assert_eq!(minimal.with_permissions(0o640).group, 4);
    }

    #[test]
    fn what_is_handed_down_is_no_more_than_was_asked_for() {
        let child = acl().handed_down(0o644);
        assert_eq!((child.owner, child.mask, child.group, child.others), (6, Some(4), 5, 0));
        assert_eq!(child.users, acl().users);
    }

    #[test]
    fn the_first_class_that_fits_decides_within_the_mask() {
        let (uid, gid) = (1, 2);
        let grants = |caller: &Credentials, mask| acl().grants(caller, uid, gid, mask);
        assert!(grants(&caller(1, &[]), 7), "the owner is outside the mask");
        assert!(grants(&caller(10, &[]), 6) && !grants(&caller(10, &[20]), 1));
        assert!(grants(&caller(5, &[2]), 4) && !grants(&caller(5, &[2]), 1), "the mask holds the group");
        assert!(grants(&caller(5, &[20]), 2) && grants(&caller(5, &[21]), 4));
        assert!(!grants(&caller(5, &[20, 21]), 6), "no one entry grants both");
        assert!(!grants(&caller(5, &[20]), 1), "a member is not among the others");
        assert!(grants(&caller(5, &[]), 1) && !grants(&caller(5, &[]), 4));
    }
}
