// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens on the host while a check runs.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;

/// Something that happens on the host, to a function that is named by its id in the device's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The function raises a vector of the type that its sources have.
    Raise {
        /// Which function.
        function: u16,
        /// Which of its vectors.
        vector: u16,
    },
    /// The host programs another message for every vector of the function.
    Move {
        /// Which function.
        function: u16,
    },
    /// The VMM takes the interrupts of the function's sources for the guest's own capability.
    Take {
        /// Which function.
        function: u16,
    },
    /// The next thing that the device has the host do for the function fails.
    Fail {
        /// Which function.
        function: u16,
    },
    /// The function leaves the host, and does not come back while the checker runs.
    Remove {
        /// Which function.
        function: u16,
    },
}

/// Why something did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ProvokeError {
    /// Nobody can make it happen: what would follow is not observable.
    #[error("needs `{0}` on the host, and nothing does that here")]
    Impossible(Action),
    /// It was tried.
    #[error("needs `{action}` on the host, which failed: {why}")]
    Failed {
        /// What was tried.
        action: Action,
        /// What went wrong.
        why: String,
    },
}

/// Makes things happen on the device's host.
pub trait Provoke {
    /// Makes this happen, and returns when it has.
    ///
    /// # Errors
    /// It did not.
    fn provoke(&self, action: Action) -> Result<(), ProvokeError>;
}

impl fmt::Display for Action {
    /// The words that [`Command`] gives to its program.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raise { function, vector } => write!(f, "raise {function} {vector}"),
            Self::Move { function } => write!(f, "move {function}"),
            Self::Take { function } => write!(f, "take {function}"),
            Self::Fail { function } => write!(f, "fail {function}"),
            Self::Remove { function } => write!(f, "remove {function}"),
        }
    }
}

/// A host on which nothing can be made to happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Provoke for Nothing {
    fn provoke(&self, action: Action) -> Result<(), ProvokeError> {
        Err(ProvokeError::Impossible(action))
    }
}

/// A program of the operator, which gets the words of the [`Action`] as arguments. Exit code 0: it happened; 3: it cannot
/// be made to happen here; anything else: it was tried and failed.
#[derive(Clone, Debug)]
pub struct Command(pub PathBuf);

impl Command {
    /// Exit code of a program that cannot do what it is asked for.
    pub const IMPOSSIBLE: i32 = 3;
}

impl Provoke for Command {
    fn provoke(&self, action: Action) -> Result<(), ProvokeError> {
        let failed = |why: String| ProvokeError::Failed { action, why };
        let words = action.to_string();
        let mut command = std::process::Command::new(&self.0);
        command.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().map_err(|error| failed(format!("{}: {error}", self.0.display())))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(Self::IMPOSSIBLE) => Err(ProvokeError::Impossible(action)),
            _ => Err(failed(format!("{}: {status}", self.0.display()))),
        }
    }
}
