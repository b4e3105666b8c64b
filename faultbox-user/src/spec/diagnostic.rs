//! Errors in a spec, each with its place and what to do.

/// One thing that is wrong in a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, a lower-case fragment.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The file as the user named it.
    pub file: String,
    /// The file's whole text.
    pub source: std::sync::Arc<str>,
    /// Byte range of the offending token in `source`.
    pub span: std::ops::Range<usize>,
    /// A word about the token, shown under it.
    pub label: String,
}

/// A spec that cannot be used.
#[derive(Debug, Clone)]
pub struct SpecError {
    /// At least one.
    pub diagnostics: Vec<Diagnostic>,
}
