//! Well-known context ids and vsock ports (`docs/seams.md`, "vsock").

/// The host's context id, fixed by the virtio specification (1.2, section 5.10.4).
pub const HOST_CID: u32 = 2;
/// The context id every berth guest has. Machines do not share a bus, so one value serves all.
pub const GUEST_CID: u32 = 3;

/// The host listens: hello, configuration, then the guest's events.
pub const BOOT: u32 = 1024;
/// The guest listens: framed requests and answers.
pub const CONTROL: u32 = 1025;
/// The guest listens: a raw stream to dockerd's API socket.
pub const DOCKER: u32 = 1026;
/// The guest listens: start a process and exchange its standard streams.
pub const EXEC: u32 = 1027;
/// The guest listens: one request, then log bytes.
pub const LOGS: u32 = 1028;
/// The guest listens: framed changes of the host to be done once more in the guest, and answers.
pub const REPLAY: u32 = 1029;
/// The guest listens: framed requests for published ports, from the guest, and answers.
pub const PUBLISH: u32 = 1030;
/// The guest listens: a frame that names a published port, then the pieces of one connection to it.
pub const FORWARD: u32 = 1031;
/// The guest listens: questions for names from the guest, and the host's answers.
pub const DNS: u32 = 1032;
