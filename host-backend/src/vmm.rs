// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the VMM says of itself: which process it is, what is assigned to its guest, and where the guest sees that.
//!
//! It is asked by QMP, in a thread of its own, when a frontend comes and when its guest's driver starts. Before the first
//! of these QEMU has no QMP socket, and before the second the guest's firmware has not numbered the buses. Nobody waits for
//! the answer: until it is there, and where there is none, functions are listed without an address and without what
//! needs the VMM's process.

use crate::admission::{Admission, DeviceSpec, Model};
use crate::bridge::{Attendant, Bridge};
use crate::qmp::{self, Assignment, QmpError, Vmm};
use crate::rate::Limited;
use crate::sys;
use crate::vfio::{ClaimError, FoundProcess, SupplyError, ToldProcess};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tracing::{info, warn};
use virtio_irq_proto::{FunctionId, PciAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Between two times that QEMU is asked, at least: a guest decides how often its driver starts.
const INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What is to be asked, and for what.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// QEMU's QMP socket.
    pub qmp: PathBuf,
    /// The daemon's own socket, by which QEMU's device is known. One that was inherited may have no name.
    pub socket: Option<PathBuf>,
    /// Whether the guest gets all functions that QEMU says are assigned to it, or only those that are there already.
    pub everything: bool,
}

/// Asks until it is dropped.
#[derive(Debug)]
pub struct Inquirer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A look at what was found out.
#[derive(Clone, Debug)]
pub struct Findings(Arc<Shared>);

/// What was found out of the VMM of the present frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The VMM's process.
    pub pid: Option<i32>,
    /// Where the guest sees the virtio-irq device.
    pub device: Option<PciAddress>,
    /// What could not be found out, and what to do about it.
    pub problems: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    inquiry: Inquiry,
    process: ToldProcess,
    /// Readable when there is something to ask.
    news: EventFd,
    /// Readable when there is nothing to ask any more.
    stop: EventFd,
    known: Mutex<Known>,
    complaints: Limited,
}

#[derive(Debug, Default)]
struct Known {
    /// Counts the frontends that left: what is found out of one is not for the next.
    visit: u64,
    /// Functions whose places are QEMU's word, and not the operator's.
    placed: BTreeSet<FunctionId>,
    /// Functions that are there because QEMU said so.
    attached: BTreeMap<PciAddress, FunctionId>,
    answer: Answer,
}

/// Why it is not known what the VMM is.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
enum Unknown {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error(
        "QEMU at {} has no virtio-irq device whose socket is {}: it is another virtual machine's; give --qmp the socket of the \
         one that connects here", qmp.display(), socket.display()
    )]
    Stranger { qmp: PathBuf, socket: PathBuf },
    #[error(transparent)]
    Process(#[from] SupplyError),
    /// Whoever asked is gone, or nobody is asked any more.
    #[error("the frontend left")]
    Left,
}

impl Inquirer {
    /// Begins to attend to the frontends of `bridge`. To be called before one is served. `process` becomes the VMM's process
    /// whenever that is known, and `admission` opens what QEMU says is assigned to its guest.
    ///
    /// # Errors
    /// The process is out of descriptors or threads.
    pub fn start(
        inquiry: Inquiry,
        process: ToldProcess,
        bridge: &Arc<Bridge>,
        admission: Arc<Admission>,
    ) -> io::Result<Self> {
        if inquiry.everything {
            bridge.device().expect_functions();
        }
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (news, stop) = (event()?, event()?);
        let (known, complaints) = (Mutex::default(), Limited::new());
        let shared = Arc::new(Shared { inquiry, process, news, stop, known, complaints });
        let (asking, of) = (shared.clone(), bridge.clone());
        let thread = std::thread::Builder::new().name("qmp".to_owned()).spawn(move || {
            if let Err(problem) = asking.run(&of, &admission) {
                warn!("QEMU is not asked any more: {problem}");
            }
        })?;
        bridge.set_attendant(shared.clone());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What is found out, from now on.
    pub fn findings(&self) -> Findings {
        Findings(self.shared.clone())
    }
}

impl Drop for Inquirer {
    fn drop(&mut self) {
        ring(&self.shared.stop);
        if let Some(thread) = self.thread.take() {
            // It does not panic; were it to, the daemon ends all the same.
            let _ = thread.join();
        }
    }
}

impl Findings {
    /// Whom it asks.
    pub fn qmp(&self) -> &Path {
        &self.0.inquiry.qmp
    }

    /// What is known of the present frontend.
    pub fn answer(&self) -> Answer {
        self.0.known().answer.clone()
    }
}

impl Attendant for Shared {
    fn attend(&self) {
        ring(&self.news);
    }

    fn left(&self, bridge: &Bridge) {
        let Known { placed, attached, .. } = {
            let mut known = self.known();
            let visit = known.visit.wrapping_add(1);
            self.process.set(None);
            std::mem::replace(&mut *known, Known { visit, ..Known::default() })
        };
        for id in attached.into_values() {
            // The operator may have been first.
            let _ = bridge.detach_function(id);
        }
        for id in placed {
            bridge.device().place_function(id, None);
        }
    }
}

impl Shared {
    fn run(&self, bridge: &Bridge, admission: &Admission) -> io::Result<()> {
        while !self.stops(&[&self.news], None)? {
            // Before anything is asked: what comes meanwhile is news again.
            let _ = self.news.read();
            let visit = self.known().visit;
            match self.inquire(bridge, admission, visit) {
                Ok(problems) => self.conclude(visit, problems),
                Err(Unknown::Left) => {}
                Err(problem) => self.conclude(visit, vec![problem.to_string()]),
            }
            if self.stops(&[], Some(&INTERVAL))? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for one of these, and returns whether it is all over.
    fn stops(&self, events: &[&EventFd], timeout: Option<&Timespec>) -> io::Result<bool> {
        let interest = |event| PollFd::from_borrowed_fd(sys::borrow(event), PollFlags::IN);
        let mut fds: Vec<_> =
            std::iter::once(&self.stop).chain(events.iter().copied()).map(interest).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, timeout))?;
        Ok(fds.first().is_some_and(|stop| !stop.revents().is_empty()))
    }

    /// Asks, and does what there is to do about the answer. Returns what keeps functions from being served whole.
    fn inquire(&self, bridge: &Bridge, admission: &Admission, visit: u64) -> Result<Vec<String>, Unknown> {
        let vmm = qmp::ask(&self.inquiry.qmp, Some(sys::borrow(&self.stop)))?;
        let device = vmm.device_of(self.inquiry.socket.as_deref()).ok_or_else(|| self.stranger())?;
        let process = ToldProcess::find(vmm.pid.cast_unsigned())?;
        self.introduce(visit, process, vmm.pid, device.guest)?;
        let mut problems = Vec::new();
        for assignment in &vmm.functions {
            // Each can take as long as an opener that was stopped, and the end of the daemon waits for this.
            if self.stops(&[], Some(&Timespec::default())).unwrap_or(true) {
                return Err(Unknown::Left);
            }
            if let Err(problem) = self.see_to(bridge, admission, visit, assignment) {
                problems.push(self.explain(assignment.host, vmm.pid, &problem));
            }
        }
        self.withdraw(bridge, visit, &vmm)?;
        Ok(problems)
    }

    fn stranger(&self) -> Unknown {
        let socket = self.inquiry.socket.clone().unwrap_or_else(|| "the inherited socket".into());
        Unknown::Stranger { qmp: self.inquiry.qmp.clone(), socket }
    }

    fn introduce(
        &self,
        visit: u64,
        process: FoundProcess,
        pid: i32,
        device: Option<PciAddress>,
    ) -> Result<(), Unknown> {
        let mut known = self.known_of(visit)?;
        let answer = &mut known.answer;
        if answer.pid != Some(pid) {
            info!("the VMM is process {pid}, as {} says", self.inquiry.qmp.display());
        }
        (answer.pid, answer.device) = (Some(pid), device);
        self.process.set(Some(process));
        Ok(())
    }

    /// A function that is assigned to the guest: says where, and lets it in if it is to be.
    fn see_to(
        &self,
        bridge: &Bridge,
        admission: &Admission,
        visit: u64,
        assignment: &Assignment,
    ) -> Result<(), Trouble> {
        let Assignment { host, guest } = *assignment;
        let name = host.to_string();
        let there = bridge.names().into_iter().find(|(_, other)| *other == name);
        match there {
            Some((id, _)) => {
                self.place(bridge, visit, id, guest);
                if self.process.is_for(host) {
                    admission.claim_from(&self.process, host)?
                }
            }
            None if self.inquiry.everything => {
                // QEMU's word alone gives its guest nothing that it does not have.
                admission.claim_from(&self.process, host)?;
                let spec = DeviceSpec { model: Model::Host(host, None), guest, id: None };
                let attached =
                    admission.attach(bridge, &spec).map_err(|error| Trouble::Attach(error.to_string()))?;
                let id = attached.function.id;
                match self.known_of(visit) {
                    Ok(mut known) => {
                        known.attached.insert(host, id);
                        known.placed.insert(id);
                    }
                    // It is nobody's.
                    Err(_) => drop(bridge.detach_function(id)),
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Says where the guest sees a function, unless the operator did.
    fn place(&self, bridge: &Bridge, visit: u64, id: FunctionId, guest: Option<PciAddress>) {
        let Ok(mut known) = self.known_of(visit) else { return };
        let mut device = bridge.device();
        let ours = known.placed.contains(&id) || device.place_of(id).is_none();
        if ours && device.place_function(id, guest) {
            known.placed.insert(id);
        }
    }

    /// Takes back what was there by QEMU's word and is not any more.
    fn withdraw(&self, bridge: &Bridge, visit: u64, vmm: &Vmm) -> Result<(), Unknown> {
        let left: Vec<_> = {
            let mut known = self.known_of(visit)?;
            let assigned = |host: &PciAddress| vmm.functions.iter().any(|function| function.host == *host);
            let left =
                known.attached.iter().filter(|(host, _)| !assigned(host)).map(|(host, id)| (*host, *id));
            let left: Vec<_> = left.collect();
            known.attached.retain(|host, _| assigned(host));
            left
        };
        for (host, id) in left {
            if bridge.detach_function(id).is_ok() {
                info!("function {id}: {host} is not assigned to the guest any more");
            }
        }
        Ok(())
    }

    fn explain(&self, function: PciAddress, pid: i32, trouble: &Trouble) -> String {
        match trouble {
            Trouble::Claim(error) if error.is_not_yet() => format!(
                "process {pid} made {} and does not have {function} open: the VMM is another process, as under libvirt; \
                 give --device {function},vfio=pidfile:PATH",
                self.inquiry.qmp.display()
            ),
            Trouble::Claim(error) => format!("{function}: {error}"),
            Trouble::Attach(text) => text.clone(),
        }
    }

    /// Writes down what is wrong, and says it once.
    fn conclude(&self, visit: u64, problems: Vec<String>) {
        let Ok(mut known) = self.known_of(visit) else { return };
        let before = std::mem::replace(&mut known.answer.problems, problems.clone());
        drop(known);
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            self.complaints.run(|| warn!("{problem}"));
        }
    }

    /// What is known of the frontend that is meant, if it is the present one.
    fn known_of(&self, visit: u64) -> Result<MutexGuard<'_, Known>, Unknown> {
        let known = self.known();
        if known.visit == visit { Ok(known) } else { Err(Unknown::Left) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a function is not served, or not whole.
#[derive(Debug)]
enum Trouble {
    Claim(ClaimError),
    Attach(String),
}

impl From<ClaimError> for Trouble {
    fn from(error: ClaimError) -> Self {
        Self::Claim(error)
    }
}

fn ring(event: &EventFd) {
    // It fails only if the counter is full, and then the event is readable anyway.
    let _ = event.write(1);
}

#[cfg(test)]
mod tests;
