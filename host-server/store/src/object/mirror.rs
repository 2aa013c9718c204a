//! The metadata region: equal copies on every mirror.

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::Object;
use super::component::{Component, Part};
use crate::address::MetadataAddress;
use crate::error::{ErrorKind, StoreError};

impl Object {
    /// How many mirrors the geometry has, live or not.
    pub fn mirror_count(&self) -> u8 {
        self.geometry.mirror_count
    }

    /// The mirrors in use, by number.
    pub fn live_mirrors(&self) -> Vec<u8> {
        (0..self.geometry.mirror_count).filter(|mirror| self.mirror(*mirror).is_live()).collect()
    }

    /// The component that holds a mirror, as people know it.
    pub fn mirror_name(&self, mirror: u8) -> String {
        self.mirror(mirror).to_string()
    }

    fn mirror(&self, mirror: u8) -> &Component {
        &self.components[usize::from(self.geometry.mirror_position(mirror).0)]
    }

    fn check_metadata_range(
        &self,
        operation: &'static str,
        address: MetadataAddress,
        len_bytes: usize,
    ) -> Result<(), StoreError> {
        let aligned = address.0.is_multiple_of(BLOCK_BYTES as u64) && len_bytes.is_multiple_of(BLOCK_BYTES);
        let end = address.0.checked_add(len_bytes as u64);
        if aligned && len_bytes > 0 && end.is_some_and(|end| end <= self.geometry.metadata_bytes) {
            return Ok(());
        }
        Err(StoreError::new(
            ErrorKind::Invalid,
            operation,
            format!("metadata at {address}"),
            format!("{len_bytes} bytes"),
        )
        .expected(format!("whole blocks inside {} bytes", self.geometry.metadata_bytes)))
    }

    /// Writes to every live mirror. Visible to reads that begin later; durable after [`flush_metadata`](Self::flush_metadata).
    /// A mirror that fails is expelled; an error only where too few components are left.
    ///
    /// Nobody may be reading the range meanwhile: a read could repair a mirror with what was there before.
    pub async fn write_metadata(&self, address: MetadataAddress, data: Vec<Slice>) -> Result<(), StoreError> {
        let mirrors: Vec<u8> = (0..self.geometry.mirror_count).collect();
        self.write_to_mirrors(&mirrors, address, data).await
    }

    /// As [`write_metadata`](Self::write_metadata), and durable on all live mirrors when it returns. Says nothing of other
    /// writes.
    pub async fn write_metadata_durably(
        &self,
        address: MetadataAddress,
        data: Vec<Slice>,
    ) -> Result<(), StoreError> {
        let offset_bytes = self.metadata_offset(address, &data)?;
        let writes = (0..self.geometry.mirror_count)
            .filter_map(|mirror| {
                let component = self.mirror(mirror);
                Some((component, component.write_durably(offset_bytes, data.clone())?))
            })
            .collect();
        self.finish_durable_writes(writes).await
    }

    /// Writes to one mirror, so that recovery can level the copies. Nothing where that mirror is not live. Otherwise as
    /// [`write_metadata`](Self::write_metadata).
    pub async fn write_metadata_mirror(
        &self,
        mirror: u8,
        address: MetadataAddress,
        data: Vec<Slice>,
    ) -> Result<(), StoreError> {
        self.write_to_mirrors(&[mirror], address, data).await
    }

    /// Where on each mirror this may be written.
    fn metadata_offset(&self, address: MetadataAddress, data: &[Slice]) -> Result<u64, StoreError> {
        self.check_writable()?;
        self.check_metadata_range("write", address, data.iter().map(|slice| slice.len()).sum())?;
        Ok(self.geometry.metadata_base() + address.0)
    }

    async fn write_to_mirrors(
        &self,
        mirrors: &[u8],
        address: MetadataAddress,
        data: Vec<Slice>,
    ) -> Result<(), StoreError> {
        let offset_bytes = self.metadata_offset(address, &data)?;
        let writes = mirrors
            .iter()
            .filter_map(|mirror| {
                let component = self.mirror(*mirror);
                Some((component, component.write(offset_bytes, data.clone())?))
            })
            .collect();
        self.finish_writes(writes, Part::Metadata).await
    }

    /// Makes every metadata write that completed before the call durable on all live mirrors.
    pub async fn flush_metadata(&self) -> Result<(), StoreError> {
        self.flush_parts(&[Part::Metadata]).await
    }

    /// Reads from the live mirrors in turn until `verify` accepts; then puts right the mirrors that it refused.
    /// [`ErrorKind::Damaged`] where it accepts none.
    ///
    /// Nobody may be writing the range meanwhile.
    pub async fn read_metadata(
        &self,
        address: MetadataAddress,
        len_bytes: usize,
        verify: impl Fn(&[u8]) -> bool,
    ) -> Result<Slice, StoreError> {
        self.check_metadata_range("read", address, len_bytes)?;
        let offset_bytes = self.geometry.metadata_base() + address.0;
        let mirrors = self.live_mirrors();
        let first = self.next_mirror.get();
        self.next_mirror.set(first.wrapping_add(1));
        let mut bad: Vec<(&Component, String)> = Vec::new();
        for turn in 0..mirrors.len() {
            let component = self.mirror(mirrors[(first + turn) % mirrors.len()]);
            let Some(read) = component.read(offset_bytes, len_bytes) else { continue };
            match read.await {
                Ok(buffer) if verify(&buffer) => {
                    component.note_read();
                    let good = buffer.freeze();
                    self.repair_mirrors(bad, offset_bytes, &good).await;
                    return Ok(good);
                }
                Ok(_) => {
                    component.count(|counters| counters.damaged_blocks += 1);
                    bad.push((component, "wrong contents".to_owned()));
                }
                Err(error) => {
                    self.note_read_error(component, &error);
                    bad.push((component, error.to_string()));
                }
            }
        }
        let found: Vec<String> =
            bad.iter().map(|(component, found)| format!("{component}: {found}")).collect();
        let found = if found.is_empty() { "no mirror is live".to_owned() } else { found.join("; ") };
        Err(StoreError::new(ErrorKind::Damaged, "read", format!("metadata at {address}"), found)
            .expected(format!("{len_bytes} valid bytes on one of {} mirrors", self.geometry.mirror_count))
            .advice("bring back missing components, if any"))
    }

    /// Writes back what another mirror had. What goes wrong here expels components and fails nobody's read.
    async fn repair_mirrors(&self, bad: Vec<(&Component, String)>, offset_bytes: u64, good: &Slice) {
        if bad.is_empty() || self.check_writable().is_err() {
            return;
        }
        let mut writes = Vec::new();
        for (component, found) in bad {
            if let Some(events) = component.log_turn() {
                tracing::warn!(
                    volume = %self.volume,
                    position = component.position.0,
                    path = %component.path.display(),
                    offset_bytes,
                    found,
                    events,
                    "metadata on this mirror was bad and is written back from another. Where this goes on, the device is \
                     failing: replace it"
                );
            }
            component.count(|counters| counters.repaired_blocks += 1);
            if let Some(write) = component.write(offset_bytes, vec![good.clone()]) {
                writes.push((component, write));
            }
        }
        if let Err(error) = self.finish_writes(writes, Part::Metadata).await {
            tracing::error!(
                volume = %self.volume,
                %error,
                "bad metadata could not be written back; it is read from the other mirrors"
            );
        }
    }

    /// Reads from one mirror, whatever the others say; the caller verifies.
    pub async fn read_metadata_mirror(
        &self,
        mirror: u8,
        address: MetadataAddress,
        len_bytes: usize,
    ) -> Result<Slice, StoreError> {
        self.check_metadata_range("read", address, len_bytes)?;
        let component = self.mirror(mirror);
        let Some(read) = component.read(self.geometry.metadata_base() + address.0, len_bytes) else {
            return Err(StoreError::new(
                ErrorKind::Unavailable,
                "read metadata from",
                component.to_string(),
                "the component is not in use",
            ));
        };
        match read.await {
            Ok(buffer) => {
                component.note_read();
                Ok(buffer.freeze())
            }
            Err(error) => {
                self.note_read_error(component, &error);
                Err(error.into())
            }
        }
    }
}
