//! The words of UMS and its pure decisions.
//!
//! Nothing here does IO, reads a clock or knows tokio: time, randomness and facts about the
//! world come in as arguments, so every decision can be tested by calling a function.
//!
//! Architecture invariant: this crate depends on no other crate of the workspace.

pub mod budget;
pub mod converge;
pub mod facts;
pub mod frontman;
pub mod id;
pub mod plan;
pub mod preflight;
pub mod receiver;
pub mod report;
pub mod saga;
pub mod specification;
pub mod step;
pub mod technique;
pub mod wrap;
