//! Two autonomous systems on one machine, and what is needed to see whether moving services
//! between them works: clients that notice every lost request, workloads that measure their own
//! standstill, and the comparison with other ways to do the same.
//!
//! Architecture invariant: nothing here calls the Coordinator or the agent as a library. The
//! systems under test are the programs a user starts, driven by their command line.

pub mod ballast;
pub mod bench;
pub mod client;
pub mod demo;
pub mod engine;
pub mod hog;
pub mod intercept;
pub mod inventory;
pub mod lab;
pub mod ledger;
pub mod leftovers;
pub mod namespace;
pub mod outer;
pub mod rootfs;
pub mod services;
pub mod specimen;
pub mod streams;
pub mod system;
pub mod testbed;
pub mod tools;
pub mod vm;
pub mod witness;
pub mod workload;
pub mod zdtm;
