//! What snapshots cost: which blocks a snapshot alone refers to, what a set shares, what deleting a set gives back.
//!
//! Answers come from a *sample* of the middle addresses, at one rate for all snapshots of a volume, so that samples of
//! snapshots are comparable and every set expression is a count. A [`Sample`](sample::Sample) holds the references to the
//! addresses in it as intervals ([`crate::interval`]), kept up to date by writes that read no map. A
//! [`Census`](census::Census) of it answers questions, each with an [`Estimate`](estimate::Estimate); a census of all
//! references answers the same questions exactly. [`plan`] and [`retain`] say what to delete.
//!
//! Modules, lowest first: `sampler` · `beta` · `estimate` · `history` · `sweep` · `census` · `places` · `sample` · `keeping` · `plan` ·
//! `retain`

mod beta;
pub mod census;
pub mod estimate;
pub mod history;
pub mod keeping;
mod places;
pub mod plan;
pub mod retain;
pub mod sample;
pub mod sampler;
pub mod sweep;
