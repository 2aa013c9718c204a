//! The extended attribute by which root of a guest learns how to begin a channel.

use std::rc::Rc;
use std::sync::Arc;

use ringfort_engine::engine::Engine;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{Credentials, NodeId, Operation, Reply};
use ringfort_protocol::control::message::{INVITATION_XATTR, SECRET_BYTES};
use zerocopy::IntoBytes;

use crate::machine::Machine;

/// Gives invitations to the guest of one machine.
pub struct Invitations {
    machine: Arc<Machine>,
    engine: Rc<dyn Engine>,
}

impl Invitations {
    pub fn new(machine: Arc<Machine>, engine: Rc<dyn Engine>) -> Self {
        Self { machine, engine }
    }

    /// The guest mounts: earlier invitations are void.
    pub fn renew(&self) {
        let mut secret = [0; SECRET_BYTES];
        for half in secret.as_chunks_mut::<8>().0 {
            *half = self.engine.random_u64().to_le_bytes();
        }
        self.machine.begin_boot(secret);
    }

    /// The answer to what is about the invitation. None where the filesystem is to answer.
    pub fn answer(&self, credentials: &Credentials, operation: &Operation) -> Option<Result<Reply, Errno>> {
        let is_ours = |name: &[u8]| name == INVITATION_XATTR.as_bytes();
        match operation {
            // The guest's kernel asks its capability before it asks us; this is for a kernel that does not.
            Operation::GetXattr { node: NodeId::ROOT, name } if is_ours(name) => {
                let invitation = self.machine.invitation().filter(|_| credentials.uid == 0);
                Some(invitation.map(|found| Reply::Value(found.as_bytes().to_vec())).ok_or(Errno::ENODATA))
            }
            // Another guest of the volume would take it for an invitation.
            Operation::SetXattr { name, .. } if is_ours(name) => Some(Err(Errno::EPERM)),
            _ => None,
        }
    }
}
