//! What a spec declares, as plain values: the language produces them, the run consumes them. No I/O, no clock.

pub mod activity;
pub mod calls;
pub mod certificate;
pub mod fault;
pub mod report;
pub mod test;
pub mod topology;

pub use activity::{Activity, FileUse, Lost, PeerUse, TraceCost};
pub use calls::CallCount;
pub use certificate::{CertificateDecl, CertificateSource, VerifyDecl};
pub use fault::{
    CutDecl, Dest, Existing, FaultPart, FaultSet, FdClass, SyscallAction, SyscallRule,
};
pub use report::{FaultReport, Location, LogTail, MeterSnapshot, Outcome, Reason, TestReport};
pub use test::{TestDecl, TestKind};
pub use topology::{Health, InterfaceDecl, IoUring, Launch, OpDecl, ServiceDecl, Topology};

/// A place in a spec, 1-based, for messages and reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SpecPos {
    /// The file as the user named it.
    pub file: String,
    /// 1-based line.
    pub line: u32,
    /// 1-based column, in characters.
    pub column: u32,
}

impl std::fmt::Display for SpecPos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
