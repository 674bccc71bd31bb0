// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The C header, the text of the specification and this crate say the same: every constant, and every structure with
//! its size and its fields' order, offsets and sizes. What the header means is asked of a C compiler.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::mem::{offset_of, size_of};
use std::process::Command;
use virtio_irq_proto::wire::{self, event_type, request_type};
use virtio_irq_proto::{
    Config, DEVICE_ID, Delivery, EVENT_QUEUE, F_EVENT, F_NATIVE, FunctionFlags, IrqType, Layout, MAGIC,
    QUEUE_COUNT, REQUEST_QUEUE, Request, Status, VERSION,
};

const HEADER: &str = include_str!("../../spec/virtio_irq.h");
const TEXT: &str = include_str!("../../spec/virtio-irq.md");

/// Name in C, name in Rust, value.
type Constant = (&'static str, &'static str, u64);

macro_rules! constants {
    ($($c:ident = $rust:expr;)*) => { [$((stringify!($c), stringify!($rust), u64::from($rust))),*] };
}

macro_rules! flags {
    ($($c:ident = $rust:expr;)*) => { [$((stringify!($c), stringify!($rust), u64::from($rust.bits()))),*] };
}

macro_rules! variants {
    ($($c:ident = $rust:expr;)*) => { [$((stringify!($c), stringify!($rust), u64::from($rust.to_wire()))),*] };
}

fn constants() -> Vec<Constant> {
    let plain = constants! {
        VIRTIO_ID_IRQ = DEVICE_ID;
        VIRTIO_IRQ_MAGIC = MAGIC;
        VIRTIO_IRQ_VERSION = VERSION;
        VIRTIO_IRQ_VQ_REQUEST = REQUEST_QUEUE;
        VIRTIO_IRQ_VQ_EVENT = EVENT_QUEUE;
        VIRTIO_IRQ_VQ_COUNT = QUEUE_COUNT;
        VIRTIO_IRQ_F_NATIVE = F_NATIVE;
        VIRTIO_IRQ_F_EVENT = F_EVENT;
        VIRTIO_IRQ_MIN_MAX_VECTORS = Config::LEAST_MAX_VECTORS;
        VIRTIO_IRQ_REQ_LIST_FUNCTIONS = request_type::LIST_FUNCTIONS;
        VIRTIO_IRQ_REQ_GET_MESSAGES = request_type::GET_MESSAGES;
        VIRTIO_IRQ_REQ_ALLOCATE = request_type::ALLOCATE;
        VIRTIO_IRQ_REQ_FREE = request_type::FREE;
        VIRTIO_IRQ_REQ_MASK = request_type::MASK;
        VIRTIO_IRQ_REQ_UNMASK = request_type::UNMASK;
        VIRTIO_IRQ_REQ_RESET_FUNCTION = request_type::RESET_FUNCTION;
        VIRTIO_IRQ_EVT_INTERRUPT = event_type::INTERRUPT;
        VIRTIO_IRQ_EVT_MESSAGE_CHANGED = event_type::MESSAGE_CHANGED;
        VIRTIO_IRQ_EVT_SOURCE_REVOKED = event_type::SOURCE_REVOKED;
        VIRTIO_IRQ_EVT_FUNCTION_GONE = event_type::FUNCTION_GONE;
    };
    let flags = flags! {
        VIRTIO_IRQ_FN_GUEST_ADDRESS = FunctionFlags::GUEST_ADDRESS;
        VIRTIO_IRQ_FN_ISOLATED = FunctionFlags::ISOLATED;
        VIRTIO_IRQ_FN_STABLE = FunctionFlags::STABLE;
        VIRTIO_IRQ_FN_NATIVE = FunctionFlags::NATIVE;
        VIRTIO_IRQ_FN_EVENT = FunctionFlags::EVENT;
    };
    let variants = variants! {
        VIRTIO_IRQ_S_OK = Status::Ok;
        VIRTIO_IRQ_S_UNSUPPORTED = Status::Unsupported;
        VIRTIO_IRQ_S_INVALID = Status::Invalid;
        VIRTIO_IRQ_S_BUFFER_TOO_SMALL = Status::BufferTooSmall;
        VIRTIO_IRQ_S_NO_FUNCTION = Status::NoFunction;
        VIRTIO_IRQ_S_NO_VECTOR = Status::NoVector;
        VIRTIO_IRQ_S_NOT_ENABLED = Status::NotEnabled;
        VIRTIO_IRQ_S_NOT_ISOLATED = Status::NotIsolated;
        VIRTIO_IRQ_S_HOST_ERROR = Status::HostError;
        VIRTIO_IRQ_S_FUNCTION_GONE = Status::FunctionGone;
        VIRTIO_IRQ_S_NO_SOURCE = Status::NoSource;
        VIRTIO_IRQ_S_BUSY = Status::Busy;
        VIRTIO_IRQ_S_NO_SPACE = Status::NoSpace;
        VIRTIO_IRQ_S_NOT_CONTIGUOUS = Status::NotContiguous;
        VIRTIO_IRQ_S_NOT_READY = Status::NotReady;
        VIRTIO_IRQ_TYPE_INTX = IrqType::Intx;
        VIRTIO_IRQ_TYPE_MSI = IrqType::Msi;
        VIRTIO_IRQ_TYPE_MSIX = IrqType::Msix;
        VIRTIO_IRQ_LAYOUT_ANY = Layout::Any;
        VIRTIO_IRQ_LAYOUT_CONTIGUOUS = Layout::Contiguous;
        VIRTIO_IRQ_DELIVERY_EVENT = Delivery::Event;
    };
    let longest = ("VIRTIO_IRQ_REQ_MAX_SIZE", "Request::MAX_SIZE", u64::try_from(Request::MAX_SIZE).unwrap());
    [&plain[..], &flags, &variants, &[longest]].concat()
}

/// Constants of this crate that are no numbers of the wire: the sizes are those of structures, which are compared as
/// such.
const NOT_IN_C: [&str; 3] = ["ALL", "SIZE", "SIZE"];

struct Structure {
    c: &'static str,
    rust: &'static str,
    size: usize,
    /// Name in C, offset and size in bytes.
    fields: Vec<(&'static str, usize, usize)>,
}

fn size_of_field<S, T>(_: fn(&S) -> &T) -> usize {
    size_of::<T>()
}

macro_rules! structures {
    ($($c:ident = $rust:ident { $($field:ident $(as $name:ident)?),* };)*) => {
        vec![$(Structure {
            c: stringify!($c),
            rust: stringify!($rust),
            size: size_of::<wire::$rust>(),
            fields: vec![$((
                [stringify!($field) $(, stringify!($name))?].into_iter().next_back().unwrap(),
                offset_of!(wire::$rust, $field),
                size_of_field(|s: &wire::$rust| &s.$field),
            )),*],
        }),*]
    };
}

fn structures() -> Vec<Structure> {
    structures! {
        virtio_irq_config = Config { magic, version, reserved0, max_sources, max_vectors, reserved1 };
        virtio_irq_req_head = RequestHead { kind as type, reserved };
        virtio_irq_reply_head = ReplyHead { status, reserved };
        virtio_irq_list_functions = ListFunctions { head, start, count, reserved };
        virtio_irq_function_list = FunctionListHead { head, count, remaining, reserved };
        virtio_irq_function = Function {
            id, flags, guest_address, vendor, device, subsystem_vendor, subsystem_device, class_revision,
            intx_count, msi_count, msix_count, reserved
        };
        virtio_irq_get_messages = GetMessages { head, function, irq_type, reserved, first, count };
        virtio_irq_message_list = MessageListHead { head, count, reserved };
        virtio_irq_message = Message { address, data, generation };
        virtio_irq_allocate = Allocate {
            head, function, irq_type, layout, least, most, first, delivery, reserved
        };
        virtio_irq_source_list = SourceListHead { head, count, reserved };
        virtio_irq_source = Source { id, vector, reserved, message };
        virtio_irq_sources = Sources { head, first, count, reserved };
        virtio_irq_reset_function = ResetFunction { head, function, reserved };
        virtio_irq_event = Event { kind as type, function, source, first, count, irq_type, reserved };
    }
}

/// Name, offset and size in bytes.
type Field = (String, usize, usize);

/// What a C compiler makes of a header: constants by name; structures by name, with size and fields.
#[derive(Default, Debug)]
struct Meaning {
    constants: BTreeMap<String, u64>,
    structures: BTreeMap<String, (usize, Vec<Field>)>,
}

/// `struct name { type field; ... };` in C text, with the comments still in place.
fn structures_in(text: &str) -> BTreeMap<String, Vec<&str>> {
    let mut found = BTreeMap::new();
    for part in text.split("\nstruct ").skip(1) {
        if let Some((name, (body, _))) =
            part.split_once(" {\n").and_then(|(name, rest)| Some((name, rest.split_once("\n};")?)))
        {
            let fields = body.lines().map(str::trim).filter(|line| !line.starts_with("/*")).collect();
            assert!(found.insert(name.to_owned(), fields).is_none(), "struct {name} is there twice");
        }
    }
    found
}

/// `le16 first;   /* 8 */` as type, name, number of elements and comment.
fn declaration(line: &str) -> (&str, &str, usize, &str) {
    let (declared, comment) = line.split_once(';').unwrap_or_else(|| panic!("no declaration: {line}"));
    let (ty, declarator) = declared.trim().rsplit_once(' ').unwrap();
    let (name, count) = match declarator.split_once('[') {
        Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap()),
        None => (declarator, 1),
    };
    (ty.trim(), name, count, comment.trim().trim_start_matches("/*").trim_end_matches("*/").trim())
}

/// Nothing where the machine has no C compiler.
fn compile(header: &str) -> Option<Meaning> {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("meaning.c"), dir.path().join("meaning"));
    std::fs::write(dir.path().join("virtio_irq.h"), header).unwrap();
    std::fs::write(&source, "#include \"virtio_irq.h\"\n").unwrap();
    let run = |command: &mut Command| match command.output() {
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{command:?}: {error}"),
    };
    let macros = run(Command::new("cc").args(["-E", "-dM"]).arg(&source))?;
    let names = macros
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_whitespace().next())
        .filter(|name| name.starts_with("VIRTIO_IRQ_") || name.starts_with("VIRTIO_ID_"));

    let mut main = String::new();
    for name in names {
        writeln!(main, "printf(\"constant {name} %llu\\n\", (unsigned long long)({name}));").unwrap();
    }
    for (name, fields) in structures_in(header) {
        writeln!(main, "printf(\"struct {name} %zu\\n\", sizeof(struct {name}));").unwrap();
        for field in fields.iter().map(|line| declaration(line).1) {
            let (offset, size) = (
                format!("offsetof(struct {name}, {field})"),
                format!("sizeof(((struct {name} *)0)->{field})"),
            );
            writeln!(main, "printf(\"field {name} {field} %zu %zu\\n\", {offset}, {size});").unwrap();
        }
    }
    let includes = "#include <stddef.h>\n#include <stdio.h>\n#include \"virtio_irq.h\"\n";
    std::fs::write(&source, format!("{includes}int main(void)\n{{\n{main}return 0;\n}}\n")).unwrap();
    let flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"];
    run(Command::new("cc").args(flags).arg(&program).arg(&source))?;

    let mut meaning = Meaning::default();
    for line in run(&mut Command::new(&program)).unwrap().lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["constant", name, value] => {
                meaning.constants.insert(name.to_owned(), value.parse().unwrap());
            }
            ["struct", name, size] => {
                meaning.structures.insert(name.to_owned(), (size.parse().unwrap(), Vec::new()));
            }
            ["field", name, field, offset, size] => {
                let field = (field.to_owned(), offset.parse().unwrap(), size.parse().unwrap());
                meaning.structures.get_mut(name).unwrap().1.push(field);
            }
            _ => panic!("{line}"),
        }
    }
    Some(meaning)
}

/// Where a header and this crate differ; nothing where the machine has no C compiler.
fn differences(header: &str) -> Option<BTreeSet<String>> {
    let c = compile(header)?;
    let mut differences = BTreeSet::new();
    let ours: BTreeMap<_, _> = constants().into_iter().map(|(c, _, value)| (c.to_owned(), value)).collect();
    for name in ours.keys().chain(c.constants.keys()) {
        if ours.get(name) != c.constants.get(name) {
            differences.insert(format!(
                "{name}: {:?} in Rust, {:?} in C",
                ours.get(name),
                c.constants.get(name)
            ));
        }
    }
    let ours: BTreeMap<_, _> = structures()
        .into_iter()
        .map(|structure| {
            let fields =
                structure.fields.into_iter().map(|(name, offset, size)| (name.to_owned(), offset, size));
            (structure.c.to_owned(), (structure.size, fields.collect::<Vec<_>>()))
        })
        .collect();
    for name in ours.keys().chain(c.structures.keys()) {
        if ours.get(name) != c.structures.get(name) {
            let (ours, theirs) = (ours.get(name), c.structures.get(name));
            differences.insert(format!("struct {name}: {ours:?} in Rust, {theirs:?} in C"));
        }
    }
    Some(differences)
}

fn without_compiler() {
    assert!(std::env::var_os("CI").is_none(), "no C compiler: `cc` was not found, install gcc or clang");
    // Not by eprintln!, which the test harness hides.
    let _ = writeln!(
        std::io::stderr(),
        "\n*** SKIPPED: no C compiler (`cc`); spec/virtio_irq.h was NOT compared with the Rust types ***\n"
    );
}

#[test]
fn the_header_and_this_crate_are_the_same() {
    match differences(HEADER) {
        Some(differences) => assert_eq!(differences, BTreeSet::new()),
        None => without_compiler(),
    }
}

#[test]
fn a_header_that_differs_is_noticed() {
    for (from, to, noticed) in [
        ("VIRTIO_IRQ_S_NO_VECTOR\t\t\t5", "VIRTIO_IRQ_S_NO_VECTOR\t\t\t6", "VIRTIO_IRQ_S_NO_VECTOR:"),
        ("#define VIRTIO_IRQ_TYPE_MSIX\t\t\t2\n", "", "VIRTIO_IRQ_TYPE_MSIX:"),
        (
            "#define VIRTIO_IRQ_TYPE_INTX",
            "#define VIRTIO_IRQ_TYPE_NEW 9\n#define VIRTIO_IRQ_TYPE_INTX",
            "VIRTIO_IRQ_TYPE_NEW:",
        ),
        (
            "\t__le32 data;\n\t__le32 generation;",
            "\t__le32 generation;\n\t__le32 data;",
            "struct virtio_irq_message:",
        ),
        ("\t__u8 irq_type;\n\t__u8 reserved[3];", "\t__le32 irq_type;", "struct virtio_irq_event:"),
        ("\t__le16 intx_count;", "\t__le32 intx_count;", "struct virtio_irq_function:"),
    ] {
        assert_eq!(HEADER.matches(from).count(), 1, "{from}");
        let Some(differences) = differences(&HEADER.replace(from, to)) else { return without_compiler() };
        assert_eq!(differences.len(), 1, "{differences:?}");
        assert!(differences.iter().all(|difference| difference.starts_with(noticed)), "{differences:?}");
    }
}

/// So that a constant or structure which somebody adds to this crate is missed in the header.
#[test]
fn nothing_of_this_crate_is_left_out() {
    let sources = [
        include_str!("../src/config.rs"),
        include_str!("../src/event.rs"),
        include_str!("../src/function.rs"),
        include_str!("../src/lib.rs"),
        include_str!("../src/reply.rs"),
        include_str!("../src/request.rs"),
        include_str!("../src/source.rs"),
        include_str!("../src/vector.rs"),
        include_str!("../src/wire.rs"),
    ];
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let is_source =
        |file: &std::fs::DirEntry| file.path().extension().is_some_and(|extension| extension == "rs");
    let files = files.map(|file| file.unwrap()).filter(is_source).count();
    assert_eq!(files, sources.len(), "name the new file in this test");
    let lines = || sources.iter().flat_map(|source| source.lines()).map(str::trim);
    let consts = lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter(|rest| !rest.starts_with("fn "))
        .filter_map(|rest| rest.split_once(':'))
        .map(|(name, _)| name);
    let variants = lines().filter_map(|line| {
        let (name, value) = line.strip_suffix(',')?.split_once(" = ")?;
        value.parse::<u16>().ok().map(|_| name)
    });
    let mut found: Vec<_> = consts.chain(variants).collect();
    let constants = constants();
    let last = |path: &'static str| path.rsplit(':').next().unwrap();
    let mut known: Vec<_> = constants.iter().map(|(_, rust, _)| last(rust)).chain(NOT_IN_C).collect();
    found.sort_unstable();
    known.sort_unstable();
    assert_eq!(found, known);

    let wire = include_str!("../src/wire.rs").lines().filter_map(|line| {
        let (name, size) = line.strip_prefix("    ")?.strip_suffix(" {")?.split_once(", ")?;
        size.parse::<usize>().ok().map(|_| name)
    });
    let known: BTreeSet<_> = structures().iter().map(|structure| structure.rust).collect();
    assert_eq!(wire.collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_text_shows_the_structures_of_the_header() {
    let plain = |lines: &[&str]| {
        let fields = lines.iter().map(|line| {
            let (ty, name, count, _) = declaration(line);
            (ty.trim_start_matches("__").to_owned(), name.to_owned(), count)
        });
        fields.collect::<Vec<_>>()
    };
    let (text, header) = (structures_in(TEXT), structures_in(HEADER));
    assert_eq!(text.keys().collect::<Vec<_>>(), header.keys().collect::<Vec<_>>());
    for (name, lines) in &text {
        assert_eq!(plain(lines), plain(&header[name]), "struct {name}");
    }
}

#[test]
fn the_text_shows_the_offsets_and_sizes() {
    let text = structures_in(TEXT);
    for structure in structures() {
        let lines = &text[structure.c];
        assert_eq!(lines.len(), structure.fields.len());
        for (line, (name, offset, _)) in lines.iter().zip(&structure.fields) {
            let comment = declaration(line).3;
            let shown = comment.trim_start_matches("offset ").split(',').next().unwrap();
            assert_eq!(shown.parse(), Ok(*offset), "struct {}, {name}: {comment}", structure.c);
        }
        let last = declaration(lines.last().unwrap()).3;
        let size = last.rsplit_once("size ").map(|(_, size)| size.parse());
        assert_eq!(size, Some(Ok(structure.size)), "struct {}: {last}", structure.c);
    }
}

/// Rows of tables that begin with a number and the name of a constant.
#[test]
fn the_text_shows_the_values_of_the_constants() {
    let values: BTreeMap<_, _> = constants().into_iter().map(|(c, _, value)| (c, value)).collect();
    for name in values.keys() {
        assert!(TEXT.contains(&format!("`{name}`")), "the text does not mention {name}");
    }
    let mut rows = 0;
    for line in TEXT.lines() {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, number, name, ..] = cells[..] else { continue };
        let (Ok(number), true) = (number.parse::<u64>(), name.starts_with("VIRTIO_")) else { continue };
        let shown = if name.starts_with("VIRTIO_IRQ_FN_") { 1 << number } else { number };
        assert_eq!(values.get(name), Some(&shown), "{line}");
        rows += 1;
    }
    assert_eq!(rows, 41);
    for word in TEXT.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let known = values.contains_key(word) || word == "VIRTIO_ID_DMABUF";
        assert!(known || !(word.starts_with("VIRTIO_IRQ_") || word.starts_with("VIRTIO_ID_")), "{word}");
    }
}
