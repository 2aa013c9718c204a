//! Pages of the maps on the metadata mirrors.

use std::cell::Cell;

use ringfort_engine::buffer::Slice;

use crate::address::MetadataAddress;
use crate::error::StoreError;
use crate::format::page::PAGE_BYTES;
use crate::kv::PageStore;
use crate::object::Object;

/// The pages as any mirror has them; what is written goes to all.
pub(crate) struct Pages<'a> {
    object: &'a Object,
    written: Cell<u64>,
}

impl<'a> Pages<'a> {
    pub fn new(object: &'a Object) -> Self {
        Self { object, written: Cell::new(0) }
    }

    /// Bytes written to all mirrors together since this was last asked.
    pub fn take_written_bytes(&self) -> u64 {
        let mirrors = self.object.live_mirrors().len() as u64;
        self.written.take() * PAGE_BYTES as u64 * mirrors
    }
}

impl PageStore for Pages<'_> {
    async fn write_page(&self, address: MetadataAddress, page: Slice) -> Result<(), StoreError> {
        self.written.set(self.written.get() + 1);
        self.object.write_metadata(address, vec![page]).await
    }

    async fn read_page(
        &self,
        address: MetadataAddress,
        verify: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Slice, StoreError> {
        self.object.read_metadata(address, PAGE_BYTES, verify).await
    }

    async fn give_way(&self) {
        self.object.give_way().await;
    }
}
