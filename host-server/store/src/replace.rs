//! Replacing a lost component of a volume that nobody serves.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringfort_engine::engine::Engine;

use crate::address::{ComponentPosition, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::component::MemberState;
use crate::keep;
use crate::object::{ComponentSpec, Object};
use crate::pages::Pages;
use crate::recover;
use crate::segment::summary::Summaries;
use crate::store::OpenOptions;

/// How far a replacement has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaceProgress {
    /// Of the new component: copied, computed, or known to hold nothing.
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What a replacement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaceReport {
    pub volume: VolumeId,
    pub position: ComponentPosition,
    /// Written to the new component.
    pub written_bytes: u64,
}

/// Puts a new component at `path`, a file to be created or a block device, in the place of one that is lost. `components` are the
/// paths of all, in order of position; the one at `position` is not written. What is computed is verified by the stripes'
/// summaries before it is written.
///
/// Until the last step is durable the volume is what it was: an attempt may be cut short at any moment, and the next one takes
/// over the path and begins anew. [`ErrorKind::Invalid`] where the component at `position` is in use.
pub async fn replace(
    engine: Rc<dyn Engine>,
    components: &[PathBuf],
    position: ComponentPosition,
    path: &Path,
    options: &OpenOptions,
    progress: &mut dyn FnMut(ReplaceProgress),
) -> Result<ReplaceReport, StoreError> {
    refuse_live(&engine, components, position, options).await?;
    let mut others = components.to_vec();
    if let Some(own) = others.get_mut(usize::from(position.0)) {
        // The lost one is not looked at any more, should it come back now.
        *own = path.to_owned();
    }
    let (object, _) = Object::open(Rc::clone(&engine), &others, options.of_object(true)).await?;
    let volume = object.volume();
    let recovery =
        recover::recover(Rc::clone(&engine), object, volume, options.commit_interval, options.memory_bytes);
    let (mut core, _) = recovery.await?;
    let maps = core.maps();
    let spec = ComponentSpec { path: path.to_owned() };
    let mut tell = |done_bytes, total_bytes| progress(ReplaceProgress { done_bytes, total_bytes });
    let (object, _) = core.parts_mut();
    let replacement = {
        let pages = Pages::new(object);
        let summaries = Summaries::new(object.geometry(), maps, &pages);
        object.rebuild(position, &spec, &summaries, &mut tell).await?
    };
    object.adopt(replacement).await?;
    let component = object.tree().components.into_iter().nth(usize::from(position.0));
    let written_bytes =
        component.and_then(|component| component.device).map_or(0, |device| device.write_bytes);
    keep::forget(&engine, volume);
    Ok(ReplaceReport { volume, position, written_bytes })
}

/// Before anything is written: opening for writing without a component marks it as failed.
async fn refuse_live(
    engine: &Rc<dyn Engine>,
    components: &[PathBuf],
    position: ComponentPosition,
    options: &OpenOptions,
) -> Result<(), StoreError> {
    let (object, _) = Object::open(Rc::clone(engine), components, options.of_object(false)).await?;
    let tree = object.tree();
    let refused = |found: String| {
        let place = format!("component {position} of volume {}", tree.volume);
        StoreError::new(ErrorKind::Invalid, "replace", place, found)
    };
    match tree.components.get(usize::from(position.0)) {
        None => {
            let count = tree.components.len();
            Err(refused("there is no such component".into()).expected(format!("a position below {count}")))
        }
        Some(component) if component.state == MemberState::Live => {
            let found = format!("{} is in use", component.path.display());
            Err(refused(found).advice("take it away first if it is to be replaced"))
        }
        Some(_) => Ok(()),
    }
}
