//! What the given paths hold: which are components of the volume, which label is the newest, who is not used and why.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringfort_engine::buffer::Buffer;
use ringfort_engine::device::Device;
use ringfort_engine::engine::Engine;
use ringfort_engine::error::ErrorKind as EngineErrorKind;
use ringfort_engine::sync::join_all;

use crate::address::{ComponentPosition, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::component::{LABEL_BYTES, LABEL_SLOTS, Label, Member, MemberState};
use crate::format::envelope::EnvelopeError;

/// What is amiss with a path or a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A member of the tree that no path gave.
    Missing,
    /// The path does not open, or labels cannot be read.
    Unreadable,
    /// The path holds no label.
    Unlabelled,
    /// The path holds a component of another volume.
    Foreign,
    /// The component is shorter than it was.
    Short,
    /// The component missed writes: its label is too old.
    Stale,
    /// The component was marked as failed.
    Failed,
    /// The component has been replaced by another.
    Replaced,
    /// The component is in another place than its own; it is used all the same.
    Swapped,
}

/// One thing that is amiss, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub path: Option<PathBuf>,
    pub position: Option<ComponentPosition>,
    pub expected: String,
    pub found: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.position, &self.path) {
            (Some(position), Some(path)) => write!(f, "component {position} ({})", path.display())?,
            (Some(position), None) => write!(f, "component {position}")?,
            (None, Some(path)) => write!(f, "{}", path.display())?,
            (None, None) => write!(f, "a component")?,
        }
        write!(f, ": {}", self.found)?;
        if self.expected.is_empty() { Ok(()) } else { write!(f, " (expected {})", self.expected) }
    }
}

/// A device and the newest label on it.
pub(super) struct Candidate {
    /// Its place among the given paths.
    pub(super) place: usize,
    pub(super) device: Rc<dyn Device>,
    pub(super) label: Label,
}

fn finding(
    kind: FindingKind,
    path: &Path,
    position: Option<ComponentPosition>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Finding {
    Finding { kind, path: Some(path.to_owned()), position, expected: expected.into(), found: found.into() }
}

/// Why a device has no label for us.
type NoLabel = (FindingKind, String);

/// The newest label of a device, or why there is none. An error where a later release has written one.
pub(super) async fn read_label(device: &dyn Device) -> Result<Result<Label, NoLabel>, StoreError> {
    if device.len_bytes() < LABEL_SLOTS[1] + LABEL_BYTES as u64 {
        let found = format!("{} bytes, too short for a label", device.len_bytes());
        return Ok(Err((FindingKind::Short, found)));
    }
    let reads = LABEL_SLOTS.map(|slot| device.read(slot, Buffer::zeroed(LABEL_BYTES)));
    let mut newest: Option<Label> = None;
    let mut reason: Option<NoLabel> = None;
    for read in reads {
        let failure = match read.await {
            Err(error) => (FindingKind::Unreadable, error.found),
            Ok(block) => match Label::decode(&block) {
                Ok(label) => {
                    if newest.as_ref().is_none_or(|newest| newest.sequence < label.sequence) {
                        newest = Some(label);
                    }
                    continue;
                }
                Err(error @ EnvelopeError::UnknownVersion { .. }) => {
                    return Err(StoreError::new(
                        ErrorKind::Incompatible,
                        "open component",
                        device.name(),
                        format!("a label of {error}"),
                    )
                    .advice("use the release that wrote it, or a later one"));
                }
                Err(error) => (FindingKind::Unlabelled, error.to_string()),
            },
        };
        // That a slot is damaged or cannot be read says more than that the other one is blank.
        if reason.is_none() || failure.1 != EnvelopeError::NotOurs.to_string() {
            reason = Some(failure);
        }
    }
    Ok(newest.ok_or_else(|| reason.unwrap_or((FindingKind::Unlabelled, "no label".to_owned()))))
}

/// Opens every path and reads its labels.
pub(super) async fn survey(
    engine: &dyn Engine,
    paths: &[PathBuf],
    write: bool,
    findings: &mut Vec<Finding>,
) -> Result<Vec<Candidate>, StoreError> {
    let mut devices = Vec::new();
    for (place, path) in paths.iter().enumerate() {
        match engine.open(path, write) {
            Ok(device) => devices.push((place, device)),
            // Somebody is using the volume: that is no missing component.
            Err(error) if error.kind == EngineErrorKind::Busy => return Err(error.into()),
            Err(error) => {
                let kind = match error.kind {
                    EngineErrorKind::NotFound => FindingKind::Missing,
                    _ => FindingKind::Unreadable,
                };
                findings.push(finding(kind, path, None, "", error.found));
            }
        }
    }
    let labels = join_all(devices.iter().map(|(_, device)| read_label(&**device))).await;
    let mut candidates = Vec::new();
    for ((place, device), label) in devices.into_iter().zip(labels) {
        match label? {
            Ok(label) => candidates.push(Candidate { place, device, label }),
            Err((kind, found)) => findings.push(finding(kind, &paths[place], None, "", found)),
        }
    }
    Ok(candidates)
}

/// The volume that is asked for, or else the one with the most components.
pub(super) fn choose_volume(
    paths: &[PathBuf],
    candidates: &[Candidate],
    asked_for: Option<VolumeId>,
    findings: &[Finding],
) -> Result<VolumeId, StoreError> {
    let mut volumes: Vec<(VolumeId, usize)> = Vec::new();
    for candidate in candidates {
        match volumes.iter_mut().find(|(volume, _)| *volume == candidate.label.volume) {
            Some((_, count)) => *count += 1,
            None => volumes.push((candidate.label.volume, 1)),
        }
    }
    let list = |paths: &[PathBuf]| {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        names.join(", ")
    };
    if let Some(volume) = asked_for {
        volumes.retain(|(found, _)| *found == volume);
    }
    volumes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    match volumes[..] {
        [] => {
            let found: Vec<String> = findings.iter().map(Finding::to_string).collect();
            let found = match (found.is_empty(), candidates.first()) {
                (_, Some(other)) => format!("components of volume {} only", other.label.volume),
                (true, None) => "no paths".to_owned(),
                (false, None) => found.join("; "),
            };
            let volume = asked_for.map_or("a volume".to_owned(), |volume| format!("volume {volume}"));
            Err(StoreError::new(ErrorKind::NotFound, "open volume", list(paths), found)
                .expected(format!("components of {volume}")))
        }
        [(first, count), (second, other), ..] if count == other => Err(StoreError::new(
            ErrorKind::Invalid,
            "open volume",
            list(paths),
            format!("as many components of volume {first} as of volume {second}"),
        )
        .advice("give the components of one volume only")),
        [(volume, _), ..] => Ok(volume),
    }
}

/// Components of other volumes are named and left alone.
pub(super) fn dismiss_foreign(
    paths: &[PathBuf],
    candidates: Vec<Candidate>,
    volume: VolumeId,
    findings: &mut Vec<Finding>,
) -> Vec<Candidate> {
    let (ours, foreign): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.label.volume == volume);
    for candidate in foreign {
        let Label { position, volume: other, .. } = candidate.label;
        findings.push(finding(
            FindingKind::Foreign,
            &paths[candidate.place],
            None,
            format!("volume {volume}"),
            format!("component {position} of volume {other}"),
        ));
    }
    ours
}

/// Two paths with the same component: one of them is a copy, and there is no telling which.
pub(super) fn refuse_doubled(paths: &[PathBuf], candidates: &[Candidate]) -> Result<(), StoreError> {
    for (index, candidate) in candidates.iter().enumerate() {
        let twin =
            candidates[..index].iter().find(|other| other.label.component == candidate.label.component);
        if let Some(twin) = twin {
            return Err(StoreError::new(
                ErrorKind::Invalid,
                "open volume",
                candidate.label.volume.to_string(),
                format!(
                    "component {} ({}) twice: {} and {}",
                    candidate.label.position,
                    candidate.label.component,
                    paths[twin.place].display(),
                    paths[candidate.place].display()
                ),
            )
            .advice("take the copy away"));
        }
    }
    Ok(())
}

/// The label that counts.
///
/// Two labels of one sequence number can differ where a change of membership was cut short and another was made without
/// the components that it had reached. With K > M neither has been acted upon: that takes a label on all of its members, of
/// which every later session sees one and then goes two numbers ahead. So either may be followed; the more common one is.
/// Otherwise both may have been, and nobody but the operator can choose.
pub(super) fn newest_label(paths: &[PathBuf], candidates: &[Candidate]) -> Result<Label, StoreError> {
    let sequence = candidates.iter().map(|candidate| candidate.label.sequence).max().unwrap_or(0);
    let mut rivals: Vec<(&Candidate, usize)> = Vec::new();
    for candidate in candidates.iter().filter(|candidate| candidate.label.sequence == sequence) {
        match rivals.iter_mut().find(|(rival, _)| rival.label.nonce == candidate.label.nonce) {
            Some((_, count)) => *count += 1,
            None => rivals.push((candidate, 1)),
        }
    }
    rivals.sort_by_key(|(candidate, count)| (std::cmp::Reverse(*count), candidate.label.position));
    match rivals[..] {
        [] => Err(StoreError::new(ErrorKind::NotFound, "open volume", "no component", "no label")),
        [(first, _), (second, _), ..] if first.label.geometry.allows_disjoint_sets() => Err(StoreError::new(
            ErrorKind::Damaged,
            "open volume",
            first.label.volume.to_string(),
            format!(
                "two histories of membership {sequence}: {} tells one, {} another",
                paths[first.place].display(),
                paths[second.place].display()
            ),
        )
        .advice("open it with the components of one history only")),
        [(first, _), ..] => Ok(first.label.clone()),
    }
}

/// The position that the component takes, or none where it is not used.
pub(super) fn admit(
    paths: &[PathBuf],
    candidate: &Candidate,
    newest: &Label,
    findings: &mut Vec<Finding>,
) -> Option<ComponentPosition> {
    let (label, path) = (&candidate.label, &paths[candidate.place]);
    let member = (0..)
        .map(ComponentPosition)
        .zip(&newest.members)
        .find(|(_, member)| member.component == label.component);
    let Some((position, member)) = member else {
        findings.push(finding(
            FindingKind::Replaced,
            path,
            None,
            "a member of the tree",
            format!("component {}, which has been replaced", label.component),
        ));
        return None;
    };
    let mut refuse = |kind, expected: String, found: String| {
        findings.push(finding(kind, path, Some(position), expected, found));
        None
    };
    if let MemberState::Failed { since_sequence } | MemberState::Absent { since_sequence } = member.state {
        let found = format!("it is marked as failed since membership {since_sequence}");
        return refuse(FindingKind::Failed, String::new(), found);
    }
    if label.sequence + 1 < newest.sequence {
        return refuse(
            FindingKind::Stale,
            format!("membership {}", newest.sequence),
            format!("an old copy, of membership {}", label.sequence),
        );
    }
    if candidate.device.len_bytes() < member.len_bytes {
        return refuse(
            FindingKind::Short,
            format!("{} bytes", member.len_bytes),
            format!("only {} bytes", candidate.device.len_bytes()),
        );
    }
    if candidate.place != usize::from(position.0) {
        findings.push(finding(
            FindingKind::Swapped,
            path,
            Some(position),
            format!("component {}", candidate.place),
            format!("component {position} in another place, used as what it is"),
        ));
    }
    Some(position)
}

/// Why a member is not in use; sees to it that a finding names it.
pub(super) fn explain_missing(
    paths: &[PathBuf],
    position: ComponentPosition,
    member: &Member,
    findings: &mut Vec<Finding>,
) -> (PathBuf, String) {
    let own_path = paths.get(usize::from(position.0));
    let known = findings.iter().position(|finding| finding.position == Some(position)).or_else(|| {
        findings.iter().position(|finding| finding.position.is_none() && finding.path.as_ref() == own_path)
    });
    if let Some(index) = known {
        let finding = &mut findings[index];
        finding.position = Some(position);
        if finding.expected.is_empty() && member.state == MemberState::Live {
            finding.expected = format!("component {}", member.component);
        }
        return (finding.path.clone().unwrap_or_default(), finding.found.clone());
    }
    let (kind, found) = match member.state {
        MemberState::Live => (FindingKind::Missing, "none of the paths holds it".to_owned()),
        MemberState::Failed { since_sequence } | MemberState::Absent { since_sequence } => {
            (FindingKind::Failed, format!("it is marked as failed since membership {since_sequence}"))
        }
    };
    let expected = format!("component {}", member.component);
    findings.push(Finding { kind, path: None, position: Some(position), expected, found: found.clone() });
    (PathBuf::new(), found)
}
