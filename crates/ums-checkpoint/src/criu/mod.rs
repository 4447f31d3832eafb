//! CRIU's three interfaces: RPC over a socket pair, the page-server protocol, the image files.

pub mod image;
pub mod page_server;
pub mod patience;
pub mod reason;
pub mod rpc;
pub mod swrk;
pub mod watch;
