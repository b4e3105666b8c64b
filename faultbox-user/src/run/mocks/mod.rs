//! Mocks: each is a process of its own like any service, so that partitions, redirection and accounts treat it like one. Faultbox itself
//! is the program.
//!
//! - [`calls`]: what a mock was asked becomes events
//! - [`functions`]: the spec's functions, for mocks whose routes have some

mod calls;
mod functions;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use faultbox_mocks::Plan;
use faultbox_mocks::plan::{Answer, Answers, Face};

use super::services::logs::file_name;
use crate::events::EventLog;
use crate::plan::{Launch, ServiceDecl};
use crate::spec::{LoadedSpec, Transcript};
use crate::sys::descriptors;

pub use calls::{Calls, follow};

/// The mock's own process: its main function.
pub fn main(plan: &Path) -> ExitCode {
    // Over TLS a connection takes three descriptors.
    descriptors::lift_limit();
    let run = || -> Result<(), String> {
        let text = std::fs::read_to_string(plan).map_err(|e| {
            format!(
                "this command is for faultbox itself: {}: {e}",
                plan.display()
            )
        })?;
        let plan: Plan = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        // One thread: a mock waits most of its time, and its answers come in one order.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start: {e}"))?;
        runtime.block_on(faultbox_mocks::run(plan))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("faultbox mock: {e}");
            ExitCode::from(70)
        }
    }
}

/// The mocks of one test.
pub struct Mocks {
    folder: PathBuf,
    calls: Vec<Arc<Calls>>,
    /// The socket of the spec's functions, once there is one.
    functions: Option<PathBuf>,
}

impl Mocks {
    /// None yet. What they need goes into `folder`.
    pub fn new(folder: &Path) -> Mocks {
        Mocks {
            folder: folder.to_owned(),
            calls: vec![],
            functions: None,
        }
    }

    /// Gives a mock what its process needs, and its arguments; other services come back as they are.
    ///
    /// # Errors
    /// A file or a socket cannot be made.
    pub fn equip(
        &mut self,
        decl: Arc<ServiceDecl>,
        spec: &Arc<LoadedSpec>,
        transcript: &Arc<Transcript>,
        events: &Arc<EventLog>,
    ) -> Result<Arc<ServiceDecl>, String> {
        let Launch::Mock { faces } = &decl.launch else {
            return Ok(decl);
        };
        let refuse = |e: std::io::Error| format!("mock `{}`: {e}", decl.name);
        let stem = file_name(&decl.name);
        let calls = self.folder.join(format!("{stem}.calls"));
        self.calls.push(Arc::new(
            Calls::create(&calls, &decl.name, events).map_err(refuse)?,
        ));
        if self.functions.is_none() && faces.iter().any(has_functions) {
            let socket = self.folder.join("functions");
            functions::serve(&socket, spec.clone(), transcript.clone()).map_err(refuse)?;
            self.functions = Some(socket);
        }
        let plan = Plan {
            faces: faces.to_vec(),
            calls,
            functions: self.functions.clone(),
        };
        let file = self.folder.join(format!("{stem}.mock"));
        let text = serde_json::to_string(&plan).map_err(|e| refuse(e.into()))?;
        std::fs::write(&file, text).map_err(refuse)?;
        let mut decl = (*decl).clone();
        decl.args = vec!["__mock".to_owned(), file.to_string_lossy().into_owned()];
        Ok(Arc::new(decl))
    }

    /// Where their calls come in.
    pub fn calls(&self) -> Vec<Arc<Calls>> {
        self.calls.clone()
    }
}

fn has_functions(face: &Face) -> bool {
    let any = |answers: &Answers| {
        answers
            .list
            .iter()
            .any(|answer| matches!(answer, Answer::Function(_)))
    };
    face.routes.iter().any(|route| any(&route.answers)) || face.default.as_ref().is_some_and(any)
}
