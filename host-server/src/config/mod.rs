//! The settings of `ringfort serve`: what each source says, and what is in force.
//!
//! A [`Layer`] is what one source says (flags, environment, configuration file, the volume's own file). Layers are laid
//! over each other, strongest first, and what nobody says has a default: that makes a [`Config`], each of whose values
//! knows where it came from.
//!
//! Modules, lowest first: `value` · `setting` · `layer` · `reader` · `file` · `print`

mod file;
mod layer;
mod print;
mod reader;
mod setting;
mod value;

pub use file::load;
pub use layer::{Config, Layer, Socket, SocketLayer, machine_name};
pub use setting::{Origin, Setting};
pub use value::{
    BUSY_POLL_US, COMMIT_INTERVAL_MS, Cache, ChannelAddress, LogFilter, LogFormat, MetricsAddress, QUEUES,
    Switch,
};
