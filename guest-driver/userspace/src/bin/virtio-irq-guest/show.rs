// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is printed: aligned tables for people, JSON for programs.

use serde::Serialize;
use serde_json::json;
use std::error::Error;
use std::io::{self, Write};
use virtio_irq_proto::{Event, Function, FunctionFlags, IrqType, Message, Source, SourceId, VectorRange};
use virtio_irq_userspace::Block;

/// Prints results to `out`.
pub(crate) struct Show<'a, W> {
    out: &'a mut W,
    json: bool,
}

/// A function in JSON. Numbers that people write in hexadecimal are strings as lspci prints them.
#[derive(Serialize)]
struct FunctionJson {
    id: u16,
    guest_address: Option<String>,
    vendor: String,
    device: String,
    subsystem_vendor: String,
    subsystem_device: String,
    class: String,
    revision: String,
    intx: u16,
    msi: u16,
    msix: u16,
    isolated: bool,
    stable: bool,
    native: bool,
    event: bool,
}

/// A message in JSON.
#[derive(Serialize)]
struct MessageJson {
    vector: u32,
    address: String,
    data: String,
    generation: u32,
}

/// A source in JSON.
#[derive(Serialize)]
struct SourceJson {
    source: u32,
    #[serde(flatten)]
    message: MessageJson,
}

impl<'a, W: Write> Show<'a, W> {
    pub(crate) fn new(out: &'a mut W, json: bool) -> Self {
        Self { out, json }
    }

    pub(crate) fn functions(&mut self, functions: &[Function]) -> io::Result<()> {
        if self.json {
            return self.document(&functions.iter().map(FunctionJson::from).collect::<Vec<_>>());
        }
        if functions.is_empty() {
            return writeln!(self.out, "The device knows no function.");
        }
        let rows = functions.iter().map(|function| {
            [
                function.id.to_string(),
                function.guest_address.map_or_else(|| "-".into(), |address| address.to_string()),
                format!("{:04x}:{:04x}", function.ids.vendor, function.ids.device),
                format!("{:06x}", function.ids.class_revision >> 8),
                function.intx_count.to_string(),
                function.msi_count.to_string(),
                function.msix_count.to_string(),
                flags(function.flags),
            ]
        });
        self.table(["ID", "GUEST ADDRESS", "PCI IDS", "CLASS", "INTX", "MSI", "MSI-X", "FLAGS"], rows)
    }

    pub(crate) fn messages(
        &mut self,
        function: &Function,
        range: VectorRange,
        messages: &[Message],
    ) -> io::Result<()> {
        let numbered = (u32::from(range.first)..).zip(messages);
        if self.json {
            let messages: Vec<_> =
                numbered.map(|(vector, message)| MessageJson::of(vector, message)).collect();
            return self.document(&json!({
                "function": function.id.0,
                "type": name(range.irq_type),
                "messages": messages,
            }));
        }
        let rows = numbered.map(|(vector, message)| {
            [
                format!("{} {vector}", label(range.irq_type)),
                format!("{:#018x}", message.address),
                format!("{:#010x}", message.data),
                message.generation.to_string(),
            ]
        });
        self.table(["VECTOR", "ADDRESS", "DATA", "GENERATION"], rows)
    }

    pub(crate) fn block(&mut self, function: &Function, range: VectorRange, block: &Block) -> io::Result<()> {
        let address = format!("{:#018x}", block.address);
        let data = format!("{:#010x}", block.data);
        if self.json {
            return self.document(&json!({
                "function": function.id.0,
                "type": name(range.irq_type),
                "first": range.first,
                "count": range.count,
                "address": address,
                "data": data,
                "generation": block.generation,
            }));
        }
        let last = range.end().saturating_sub(1);
        let vectors = format!("{} {}-{last}", label(range.irq_type), range.first);
        let row = [vectors, address, data, block.generation.to_string()];
        self.table(["VECTORS", "ADDRESS", "FIRST DATA", "GENERATION"], std::iter::once(row))
    }

    pub(crate) fn sources(&mut self, function: &Function, sources: &[Source]) -> io::Result<()> {
        if self.json {
            return self.document(&sources_json(function, sources));
        }
        self.table(SOURCE_HEAD, sources.iter().map(source_row))
    }

    /// The sources whose interrupts are about to be counted.
    pub(crate) fn counting(&mut self, function: &Function, sources: &[Source]) -> io::Result<()> {
        if self.json { self.line(&sources_json(function, sources)) } else { Ok(()) }
    }

    /// An interrupt, the `count`th of its source.
    pub(crate) fn counted(&mut self, source: SourceId, count: u64) -> io::Result<()> {
        if self.json {
            self.line(&json!({ "event": "interrupt", "source": source.0, "count": count }))?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// The interrupts so far, in the order of the sources. Replaces what was printed `over` lines before.
    pub(crate) fn counts(&mut self, sources: &[Source], counts: &[u64], over: usize) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        if over > 0 {
            // Up, and clear from there on.
            write!(self.out, "\x1b[{over}A\x1b[J")?;
        }
        let [id, vector, address, data, _] = SOURCE_HEAD;
        let rows = sources.iter().zip(counts).map(|(source, count)| {
            let [id, vector, address, data, _] = source_row(source);
            [id, vector, address, data, count.to_string()]
        });
        self.table([id, vector, address, data, "INTERRUPTS"], rows)?;
        self.out.flush()
    }

    pub(crate) fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::MessageChanged { function, vectors } if self.json => self.line(&json!({
                "event": "message-changed",
                "function": function.0,
                "type": name(vectors.irq_type),
                "first": vectors.first,
                "count": vectors.count,
            })),
            Event::FunctionGone { function } if self.json => {
                self.line(&json!({ "event": "function-gone", "function": function.0 }))
            }
            Event::MessageChanged { function, vectors } => {
                let last = vectors.end().saturating_sub(1);
                let (kind, first) = (label(vectors.irq_type), vectors.first);
                writeln!(self.out, "function {function}: the messages of {kind} {first}-{last} changed")
            }
            Event::FunctionGone { function } => writeln!(self.out, "function {function}: gone from the host"),
            Event::Interrupt { function, source } if self.json => self.line(&json!({
                "event": "interrupt",
                "function": function.0,
                "source": source.0,
            })),
            Event::SourceRevoked { function, source } if self.json => self.line(&json!({
                "event": "source-revoked",
                "function": function.0,
                "source": source.0,
            })),
            Event::Interrupt { function, source } => {
                writeln!(self.out, "function {function}: source {source} fired")
            }
            Event::SourceRevoked { function, source } => {
                writeln!(self.out, "function {function}: source {source} was revoked")
            }
        }?;
        self.out.flush()
    }

    fn document(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        writeln!(self.out)
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self.out, value)?;
        writeln!(self.out)
    }

    fn table<const N: usize>(
        &mut self,
        head: [&str; N],
        rows: impl Iterator<Item = [String; N]>,
    ) -> io::Result<()> {
        let rows: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
        let widths: Vec<_> =
            (0..N).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
        for row in &rows {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(self.out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

const SOURCE_HEAD: [&str; 5] = ["SOURCE", "VECTOR", "ADDRESS", "DATA", "GENERATION"];

fn source_row(source: &Source) -> [String; 5] {
    [
        source.id.to_string(),
        source.vector.to_string(),
        format!("{:#018x}", source.message.address),
        format!("{:#010x}", source.message.data),
        source.message.generation.to_string(),
    ]
}

fn sources_json(function: &Function, sources: &[Source]) -> serde_json::Value {
    let sources: Vec<_> = sources
        .iter()
        .map(|source| {
            let message = MessageJson::of(source.vector.into(), &source.message);
            SourceJson { source: source.id.0, message }
        })
        .collect();
    json!({ "function": function.id.0, "sources": sources })
}

impl From<&Function> for FunctionJson {
    fn from(function: &Function) -> Self {
        let ids = function.ids;
        let has = |flag| function.flags.contains(flag);
        Self {
            id: function.id.0,
            guest_address: function.guest_address.map(|address| address.to_string()),
            vendor: format!("{:04x}", ids.vendor),
            device: format!("{:04x}", ids.device),
            subsystem_vendor: format!("{:04x}", ids.subsystem_vendor),
            subsystem_device: format!("{:04x}", ids.subsystem_device),
            class: format!("{:06x}", ids.class_revision >> 8),
            revision: format!("{:02x}", ids.class_revision & 0xff),
            intx: function.intx_count,
            msi: function.msi_count,
            msix: function.msix_count,
            isolated: has(FunctionFlags::ISOLATED),
            stable: has(FunctionFlags::STABLE),
            native: has(FunctionFlags::NATIVE),
            event: has(FunctionFlags::EVENT),
        }
    }
}

impl MessageJson {
    fn of(vector: u32, message: &Message) -> Self {
        Self {
            vector,
            address: format!("{:#018x}", message.address),
            data: format!("{:#010x}", message.data),
            generation: message.generation,
        }
    }
}

fn flags(flags: FunctionFlags) -> String {
    let names = [
        (FunctionFlags::ISOLATED, "isolated"),
        (FunctionFlags::STABLE, "stable"),
        (FunctionFlags::NATIVE, "native"),
        (FunctionFlags::EVENT, "event"),
    ];
    let set: Vec<_> = names.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect();
    if set.is_empty() { "-".into() } else { set.join(",") }
}

fn label(irq_type: IrqType) -> &'static str {
    match irq_type {
        IrqType::Intx => "INTx",
        IrqType::Msi => "MSI",
        IrqType::Msix => "MSI-X",
    }
}

fn name(irq_type: IrqType) -> &'static str {
    match irq_type {
        IrqType::Intx => "intx",
        IrqType::Msi => "msi",
        IrqType::Msix => "msix",
    }
}

/// An error and what is behind it, in one line. A cause whose text its error already ends with is not repeated.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;
    use virtio_irq_proto::{FunctionId, PciAddress, PciIds};

    fn function() -> Function {
        Function {
            id: FunctionId(3),
            flags: FunctionFlags::NATIVE.with(FunctionFlags::ISOLATED, true),
            guest_address: Some(PciAddress { segment: 0, bus: 0, devfn: 0x30 }),
            ids: PciIds {
                vendor: 0x17cb,
                device: 0x1103,
                subsystem_vendor: 0x105b,
                subsystem_device: 0xe0ce,
                class_revision: 0x0280_0001,
            },
            intx_count: 1,
            msi_count: 32,
            msix_count: 0,
        }
    }

    fn shown(json: bool, show: impl FnOnce(&mut Show<'_, Vec<u8>>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        show(&mut Show::new(&mut out, json)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn functions_are_an_aligned_table() {
        let expected = "\
ID  GUEST ADDRESS  PCI IDS    CLASS   INTX  MSI  MSI-X  FLAGS
3   0000:00:06.0   17cb:1103  028000  1     32   0      isolated,native
";
        assert_eq!(shown(false, |show| show.functions(&[function()])), expected);
        assert_eq!(shown(false, |show| show.functions(&[])), "The device knows no function.\n");
    }

    #[test]
    fn messages_are_numbered_by_their_vectors() {
        let range = VectorRange { irq_type: IrqType::Msi, first: 4, count: NonZeroU16::new(2).unwrap() };
        let message = |data| Message { address: 0xfee0_0578, data, generation: 7 };
        let messages = [message(4), message(5)];
        let expected = "\
VECTOR  ADDRESS             DATA        GENERATION
MSI 4   0x00000000fee00578  0x00000004  7
MSI 5   0x00000000fee00578  0x00000005  7
";
        assert_eq!(shown(false, |show| show.messages(&function(), range, &messages)), expected);
        let json: serde_json::Value =
            serde_json::from_str(&shown(true, |show| show.messages(&function(), range, &messages))).unwrap();
        assert_eq!(json["type"], "msi");
        assert_eq!(json["messages"][1]["vector"], 5);
        assert_eq!(json["messages"][1]["address"], "0x00000000fee00578");
    }

    #[test]
    fn sources_are_shown_with_their_messages_and_counts() {
        let source = |id, vector| Source {
            id: virtio_irq_proto::SourceId(id),
            vector,
            message: Message { address: 0xfee0_0578, data: u32::from(vector), generation: 7 },
        };
        let sources = [source(9, 4), source(12, 5)];
        let expected = "\
SOURCE  VECTOR  ADDRESS             DATA        GENERATION
9       4       0x00000000fee00578  0x00000004  7
12      5       0x00000000fee00578  0x00000005  7
";
        assert_eq!(shown(false, |show| show.sources(&function(), &sources)), expected);
        let expected = "\
SOURCE  VECTOR  ADDRESS             DATA        INTERRUPTS
9       4       0x00000000fee00578  0x00000004  0
12      5       0x00000000fee00578  0x00000005  1024
";
        assert_eq!(shown(false, |show| show.counts(&sources, &[0, 1024], 0)), expected);
        let over = shown(false, |show| show.counts(&sources, &[0, 1024], 3));
        assert_eq!(over, format!("\x1b[3A\x1b[J{expected}"));
        let json: serde_json::Value =
            serde_json::from_str(&shown(true, |show| show.sources(&function(), &sources))).unwrap();
        assert_eq!(json["sources"][1]["source"], 12);
        assert_eq!(json["sources"][1]["data"], "0x00000005");
    }

    #[test]
    fn events_are_one_line_each() {
        let vectors = VectorRange { irq_type: IrqType::Msix, first: 2, count: NonZeroU16::new(3).unwrap() };
        let changed = Event::MessageChanged { function: FunctionId(1), vectors };
        let gone = Event::FunctionGone { function: FunctionId(1) };
        assert_eq!(
            shown(false, |show| show.event(&changed)),
            "function 1: the messages of MSI-X 2-4 changed\n"
        );
        assert_eq!(shown(true, |show| show.event(&gone)), "{\"event\":\"function-gone\",\"function\":1}\n");
    }
}
