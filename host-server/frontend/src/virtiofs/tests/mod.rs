//! The device under a guest's driver: in a simulated machine, without vhost-user; and through vhost-user.

mod conversation;
mod driver;
mod fake;
mod filesystem;
mod flipping;
mod guest;
mod hostile;
mod machine;
mod pace;
mod vhost_user;
mod volume;
