//! Making the object larger.

use super::Object;
use crate::error::{ErrorKind, StoreError};
use crate::geometry::Geometry;

impl Object {
    /// Takes over a geometry with more segments, or with a longer metadata region where no data follows it. Every component is in
    /// use and long enough. What is there stays where it is. A crash on the way leaves the old geometry or the new one.
    pub async fn grow(&mut self, geometry: Geometry) -> Result<(), StoreError> {
        self.check_writable()?;
        geometry.check()?;
        self.check_growth(&geometry)?;
        for (component, member) in self.components.iter_mut().zip(&mut self.membership.borrow_mut().members) {
            component.len_bytes = geometry.component_bytes(component.position);
            member.len_bytes = component.len_bytes;
        }
        self.geometry = geometry;
        self.begin_session().await
    }

    fn check_growth(&self, geometry: &Geometry) -> Result<(), StoreError> {
        let refused =
            |kind, found: String| StoreError::new(kind, "grow", format!("volume {}", self.volume), found);
        let Geometry { segment_count, metadata_bytes, .. } = *geometry;
        let same_places = Geometry { segment_count, metadata_bytes, ..self.geometry } == *geometry
            && segment_count >= self.geometry.segment_count
            && metadata_bytes >= self.geometry.metadata_bytes
            && (geometry.dedicated_metadata || metadata_bytes == self.geometry.metadata_bytes);
        if !same_places {
            return Err(refused(
                ErrorKind::Invalid,
                "a geometry that moves or takes away what is there".into(),
            ));
        }
        for component in &self.components {
            let needed_bytes = geometry.component_bytes(component.position);
            let Some(device) = component.device() else {
                let found = format!("{component} is not in use");
                return Err(refused(ErrorKind::Unavailable, found).advice("replace it first"));
            };
            if device.len_bytes() < needed_bytes {
                let found = format!("{component} has {} bytes", device.len_bytes());
                return Err(refused(ErrorKind::Invalid, found).expected(format!("{needed_bytes} bytes")));
            }
        }
        Ok(())
    }

    /// The length that each component's device has now, by position; `None` where it is not in use.
    pub fn present_lengths(&self) -> Vec<Option<u64>> {
        self.components.iter().map(|component| component.device().map(|device| device.len_bytes())).collect()
    }
}
