// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which steps of making the tree are complete.

use crate::error::{At, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// All that decides what the tree becomes; another recipe is another tree.
    recipe: String,
    done: Vec<String>,
    /// The step that was begun last and is not complete.
    running: Option<String>,
}

/// The record of steps, kept beside the tree.
#[derive(Debug)]
pub(super) struct Steps {
    file: PathBuf,
    state: State,
}

impl Steps {
    /// Reads the record. A missing, unreadable or foreign record, or one with a step that was broken off, means a fresh
    /// start: `discard` is called, and the record is empty.
    pub(super) fn open(file: &Path, recipe: &str, discard: impl FnOnce() -> Result<()>) -> Result<Self> {
        let recorded: Option<State> = fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let usable = recorded.filter(|state| state.recipe == recipe && state.running.is_none());
        let state = match usable {
            Some(state) => state,
            None => {
                discard()?;
                State { recipe: recipe.to_owned(), ..State::default() }
            }
        };
        Ok(Self { file: file.to_owned(), state })
    }

    /// Does a step unless it is complete.
    pub(super) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.state.done.iter().any(|done| done == name) {
            return Ok(());
        }
        self.state.running = Some(name.to_owned());
        self.write()?;
        work()?;
        self.state.running = None;
        self.state.done.push(name.to_owned());
        self.write()
    }

    /// In one piece: a record that a kill cut short must not pass for another.
    fn write(&self) -> Result<()> {
        let next = self.file.with_extension("next");
        let text = serde_json::to_vec_pretty(&self.state).map_err(std::io::Error::from).at(&next)?;
        fs::write(&next, text).and_then(|()| fs::rename(&next, &self.file)).at(&next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::cell::Cell;

    /// Opens the record and says whether it asked to throw the tree away.
    fn open(file: &Path, recipe: &str) -> (Steps, bool) {
        let discarded = Cell::new(false);
        let steps = Steps::open(file, recipe, || {
            discarded.set(true);
            Ok(())
        });
        (steps.unwrap(), discarded.get())
    }

    #[test]
    fn a_complete_step_is_not_done_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("steps");
        open(&file, "recipe").0.step("one", || Ok(())).unwrap();
        let (mut steps, discarded) = open(&file, "recipe");
        assert!(!discarded);
        steps.step("one", || panic!("done twice")).unwrap();
    }

    #[test]
    fn a_broken_off_step_throws_everything_away() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("steps");
        let (mut steps, _) = open(&file, "recipe");
        steps.step("one", || Ok(())).unwrap();
        steps.step("two", || Err(Error::Unexpected("killed".into()))).unwrap_err();
        let (mut steps, discarded) = open(&file, "recipe");
        assert!(discarded);
        let again = Cell::new(false);
        steps
            .step("one", || {
                again.set(true);
                Ok(())
            })
            .unwrap();
        assert!(again.get());
    }

    #[test]
    fn another_recipe_is_another_tree() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("steps");
        open(&file, "recipe").0.step("one", || Ok(())).unwrap();
        assert!(open(&file, "new recipe").1);
    }
}
