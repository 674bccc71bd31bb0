// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What happens between any two steps of an allocation: the host fails, the VMM ends, the guest is reset. Whatever it is, the
//! host has nothing left of it, and the next request works.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test program: what fails here fails the test")]

mod common;

use common::{LONG, allocate_of, get_messages, readable, sources};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Pair, Quota};
use vhost_device_irq::host::sim::{KINDS, SimFunction};
use vhost_device_irq::host::{Description, HostError, HostFunction, Interrupts};
use virtio_irq_proto::{FunctionFlags, FunctionId, IrqType, VectorRange};

const OK: u8 = 0;
const HOST_ERROR: u8 = 8;
const FUNCTION_GONE: u8 = 9;
const NO_SOURCE: u8 = 10;
const BUSY: u8 = 11;
const NOT_READY: u8 = 14;

const FREE: u8 = 17;
const UNMASK: u8 = 19;

const INTERRUPT: u8 = 1;
const REVOKED: u8 = 3;

/// What comes in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The next call fails.
    Failure,
    /// The function leaves the host.
    Removal,
    /// The guest is reset, or its VMM disconnects.
    Reset,
    /// The queues stop.
    Stop,
    /// The VMM enables the interrupts for itself.
    TakeOver,
    /// The VMM ends, and the daemon hears of it.
    End,
}

use Blow::{End, Failure, Removal, Reset, Stop, TakeOver};

/// What is allocated here: a type, its number, and how many sources.
const TYPES: [(IrqType, u8, u16); 3] = [(IrqType::Intx, 0, 1), (IrqType::Msi, 1, 4), (IrqType::Msix, 2, 4)];

/// A simulated function whose calls are counted, one of which is hit.
#[derive(Debug)]
struct Hit {
    function: SimFunction,
    bridge: Arc<OnceLock<Weak<Bridge>>>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    calls: u32,
    /// At which call, counted from 0, whether after it rather than before it, and what.
    hit: Option<(u32, bool, Blow)>,
    /// What shows that the VMM ended.
    vmm: Option<std::io::PipeWriter>,
}

impl Hit {
    fn call<R>(&self, made: impl FnOnce() -> R) -> R {
        let hit = {
            let mut plan = self.plan.lock().unwrap();
            let now = plan.calls;
            plan.calls += 1;
            plan.hit.filter(|(at, ..)| *at == now)
        };
        if let Some((_, false, blow)) = hit {
            self.strike(blow);
        }
        let result = made();
        if let Some((_, true, blow)) = hit {
            self.strike(blow);
        }
        result
    }

    fn strike(&self, blow: Blow) {
        let bridge = self.bridge.get().and_then(Weak::upgrade).unwrap();
        match blow {
            Blow::Failure => self.function.fail(1),
            Blow::Removal => self.function.remove(),
            Blow::Reset => bridge.reset(),
            Blow::Stop => bridge.stop(),
            Blow::TakeOver => self.function.take_away(),
            Blow::End => {
                self.plan.lock().unwrap().vmm = None;
                bridge.look_after();
            }
        }
    }
}

impl HostFunction for Hit {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn describe(&self) -> Description {
        self.function.describe()
    }

    fn read_messages(&self, vectors: VectorRange) -> Result<Vec<Pair>, HostError> {
        self.call(|| self.function.read_messages(vectors))
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(self)
    }
}

impl Interrupts for Hit {
    fn enable(&self, irq_type: IrqType, end: u16) -> Result<u16, HostError> {
        self.call(|| Interrupts::enable(&self.function, irq_type, end))
    }

    fn attach(&self, irq_type: IrqType, triggers: &[(u16, BorrowedFd<'_>)]) -> Result<Vec<Pair>, HostError> {
        self.call(|| self.function.attach(irq_type, triggers))
    }

    fn detach(&self, irq_type: IrqType, vectors: &[u16], last: bool) -> Result<(), HostError> {
        self.call(|| self.function.detach(irq_type, vectors, last))
    }

    fn unmask_pin(&self) -> Result<(), HostError> {
        self.call(|| self.function.unmask_pin())
    }

    fn still_ours(&self) -> bool {
        self.function.still_ours()
    }

    fn owner(&self) -> std::io::Result<Option<OwnedFd>> {
        self.function.owner()
    }
}

/// A device with one function, and everything that it has open counted from the beginning.
struct Bench {
    bridge: Arc<Bridge>,
    function: SimFunction,
    plan: Arc<Mutex<Plan>>,
    open_files: usize,
    _alone: MutexGuard<'static, ()>,
}

/// Open files are the process's, so the tests take turns.
static ALONE: Mutex<()> = Mutex::new(());

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Bench {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let function = SimFunction::new("card", KINDS[1].ids, 32, 8, 7);
        let (plan, late) = (Arc::<Mutex<Plan>>::default(), Arc::new(OnceLock::new()));
        let flags = FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true);
        let assigned =
            Assigned { function: function.describe().function(FunctionId(7), flags), refused: false };
        let hit = Hit { function: function.clone(), bridge: Arc::clone(&late), plan: Arc::clone(&plan) };
        let quota = Quota { guest: 40, function: 32 };
        let bridge = Arc::new(Bridge::new(vec![(assigned, Box::new(hit))], quota).unwrap());
        late.set(Arc::downgrade(&bridge)).unwrap();
        bridge.device().negotiated(3);
        let mut bench = Self { bridge, function, plan, open_files: 0, _alone: alone };
        bench.new_vmm();
        bench.open_files = open_files();
        bench
    }

    /// The VMM is there, or is another one from now on.
    fn new_vmm(&self) {
        let (owner, vmm) = std::io::pipe().unwrap();
        self.function.owned_by(owner.into());
        self.plan.lock().unwrap().vmm = Some(vmm);
    }

    /// Plans a hit at the call with this number from now on.
    fn hit(&self, at: u32, after: bool, blow: Blow) {
        let mut plan = self.plan.lock().unwrap();
        plan.hit = Some((plan.calls + at, after, blow));
    }

    /// Whether it came.
    fn was_hit(&self) -> bool {
        let mut plan = self.plan.lock().unwrap();
        let calls = plan.calls;
        plan.hit.take().is_some_and(|(at, ..)| at < calls)
    }

    fn ask(&self, request: &[u8]) -> u8 {
        self.bridge.answer(request, 1 << 16).bytes()[0]
    }

    /// Takes what the device has to say: the type and the source of each event.
    fn events(&self) -> Vec<(u8, u32)> {
        self.bridge.collect();
        let mut device = self.bridge.device();
        let events = device.next_events(usize::MAX);
        device.events_taken(events.len());
        events.iter().map(|event| (event.kind.get() as u8, event.source.get())).collect()
    }

    /// Waits until the daemon looks after the host.
    #[track_caller]
    fn look(&self, about: &str) {
        assert!(readable(self.bridge.lookout(), LONG), "{about}: nobody looks after the host");
        self.bridge.look_after();
    }

    /// There is what `sources` sources of the type need, no less and no more.
    #[track_caller]
    fn holds(&self, irq_type: IrqType, sources: usize, about: &str) {
        assert_eq!(self.function.attached().len(), sources, "{about}: attached on the host");
        assert_eq!(self.bridge.deliveries().count(), sources, "{about}: eventfds");
        let enabled = (sources > 0).then_some(irq_type);
        assert_eq!(self.function.enabled_for_sources(), enabled, "{about}: enabled on the host");
    }

    /// Nothing is left of a blow: the next request works, with the next VMM if the first one ended. Afterwards nothing is open
    /// that was not in the beginning.
    #[track_caller]
    fn is_well(&self, blow: Blow, about: &str) {
        self.function.fail(0);
        self.function.give_back();
        if blow == End {
            self.new_vmm();
        }
        self.events();
        let next = self.ask(&allocate_of(7, 1, 5, 3));
        if blow == Removal {
            assert_eq!(next, FUNCTION_GONE, "{about}: the next request");
        } else {
            assert_eq!(next, OK, "{about}: the next request");
            self.holds(IrqType::Msi, 3, about);
            assert!(self.function.fire(6));
            assert_eq!(self.events(), [(INTERRUPT, 1)], "{about}: the next interrupt");
            assert_eq!(self.ask(&sources(FREE, 0, 3)), OK, "{about}");
        }
        self.holds(IrqType::Msi, 0, about);
        let (now, vmm) = (open_files(), usize::from(self.plan.lock().unwrap().vmm.is_none()));
        assert_eq!(now + vmm, self.open_files, "{about}: open files");
    }
}

/// Statuses of an allocation that is hit before and after it enables the interrupts, and before and after it attaches
/// vectors.
const ALLOCATIONS: [(Blow, [u8; 4]); 6] = [
    (Failure, [HOST_ERROR, HOST_ERROR, HOST_ERROR, OK]),
    (Removal, [FUNCTION_GONE, FUNCTION_GONE, FUNCTION_GONE, OK]),
    (Reset, [HOST_ERROR; 4]),
    (Stop, [HOST_ERROR, HOST_ERROR, NOT_READY, HOST_ERROR]),
    (TakeOver, [BUSY, BUSY, BUSY, OK]),
    // Between the calls nobody waits for the end of the VMM at first, and then somebody does.
    (End, [NOT_READY, OK, NOT_READY, HOST_ERROR]),
];

#[test]
fn whatever_comes_between_two_steps_of_an_allocation_leaves_nothing_behind() {
    for (irq_type, number, count) in TYPES {
        for (blow, statuses) in ALLOCATIONS {
            for (at, status) in statuses.into_iter().enumerate() {
                let about = format!("{irq_type:?}, {blow:?} at {at}");
                let bench = Bench::new();
                bench.hit(at as u32 / 2, at % 2 == 1, blow);
                assert_eq!(bench.ask(&allocate_of(7, number, 0, count)), status, "{about}");
                assert!(bench.was_hit(), "{about}");
                let held = if status == OK { usize::from(count) } else { 0 };
                match blow {
                    // Nobody heard of it yet, so it takes a look.
                    TakeOver | End if status == OK => {
                        bench.look(&about);
                        bench.holds(irq_type, 0, &about);
                        let revoked: Vec<_> = (0..u32::from(count)).map(|source| (REVOKED, source)).collect();
                        assert_eq!(bench.events(), revoked, "{about}");
                    }
                    Removal if status == OK => {
                        bench.holds(irq_type, held, &about);
                        assert_eq!(bench.ask(&get_messages(7, 1, 0, 1)), FUNCTION_GONE, "{about}");
                        bench.holds(irq_type, 0, &about);
                    }
                    _ => bench.holds(irq_type, held, &about),
                }
                let has = status == OK && blow != Removal;
                let freed = bench.ask(&sources(FREE, 0, count));
                assert_eq!(freed, if has { OK } else { NO_SOURCE }, "{about}");
                bench.is_well(blow, &about);
            }
        }
    }
}

#[test]
fn whatever_comes_while_sources_are_freed_leaves_nothing_behind() {
    for (irq_type, number, count) in TYPES {
        for (blow, _) in ALLOCATIONS {
            for after in [false, true] {
                let about =
                    format!("{irq_type:?}, {blow:?} {} the release", if after { "after" } else { "before" });
                let bench = Bench::new();
                assert_eq!(bench.ask(&allocate_of(7, number, 0, count)), OK, "{about}");
                bench.holds(irq_type, usize::from(count), &about);
                bench.hit(0, after, blow);
                assert_eq!(bench.ask(&sources(FREE, 0, count)), OK, "{about}");
                assert!(bench.was_hit(), "{about}");
                bench.holds(irq_type, 0, &about);
                assert_eq!(bench.ask(&sources(FREE, 0, count)), NO_SOURCE, "{about}");
                bench.is_well(blow, &about);
            }
        }
    }
}

#[test]
fn whatever_comes_while_a_pin_is_unmasked_leaves_nothing_behind() {
    let unmaskings = [
        (Failure, [HOST_ERROR, OK]),
        (Removal, [FUNCTION_GONE, OK]),
        (Reset, [OK, OK]),
        (Stop, [OK, OK]),
        (TakeOver, [OK, OK]),
        (End, [OK, OK]),
    ];
    for (blow, statuses) in unmaskings {
        for (status, after) in statuses.into_iter().zip([false, true]) {
            let about = format!("{blow:?} {} it", if after { "after" } else { "before" });
            let bench = Bench::new();
            assert_eq!(bench.ask(&allocate_of(7, 0, 0, 1)), OK);
            assert!(bench.function.fire(0));
            assert_eq!(bench.events(), [(INTERRUPT, 0)]);
            bench.hit(0, after, blow);
            assert_eq!(bench.ask(&sources(UNMASK, 0, 1)), status, "{about}");
            assert!(bench.was_hit(), "{about}");
            if blow == Failure {
                bench.function.fail(0);
                assert_eq!(bench.function.fire(0), status == OK, "{about}: whether the pin is armed");
                assert_eq!(bench.ask(&sources(UNMASK, 0, 1)), OK, "{about}");
                assert_eq!(bench.events(), [(INTERRUPT, 0)], "{about}");
            }
            let freed = bench.ask(&sources(FREE, 0, 1));
            let has = !matches!(blow, Reset) && status != FUNCTION_GONE;
            assert_eq!(freed, if has { OK } else { NO_SOURCE }, "{about}");
            bench.holds(IrqType::Intx, 0, &about);
            bench.is_well(blow, &about);
        }
    }
}
