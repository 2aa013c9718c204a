//! What systemd, or whoever else set NOTIFY_SOCKET, is told: ready, stopping, how it goes, and signs of life.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager, if there is one. All messages are lost where there is none.
#[derive(Clone, Copy, Debug)]
pub struct ServiceManager {
    /// It ends a server that has given no sign of life for so long.
    patience: Option<Duration>,
}

impl ServiceManager {
    pub fn of_environment() -> Self {
        Self { patience: sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) }
    }

    /// How often a sign of life is due; None where nobody waits for any.
    pub fn sign_interval(&self) -> Option<Duration> {
        self.patience.map(|patience| patience / 3)
    }

    /// The volume is served from now on.
    pub fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    pub fn status(&self, status: &str) {
        notify(&[NotifyState::Status(status)]);
    }

    pub fn stopping(&self, status: &str) {
        notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// The server lives.
    pub fn sign_of_life(&self) {
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(?state, %error, "the service manager cannot be told; look at NOTIFY_SOCKET and its socket");
    }
}
