// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The report for a person: one screen, colored and as wide as the terminal is; without color, marks in ASCII and
//! unfolded where it goes elsewhere.

use super::report::{Fact, Finding, Mark, Report, Subject, Symptom, Verdict};
use anstyle::{AnsiColor, Style};
use std::fmt::{self, Write};
use textwrap::Options;

/// How the report is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Columns; none to leave lines as long as they are.
    pub width: Option<usize>,
    /// Marks beyond ASCII.
    pub unicode: bool,
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();
const COMMAND: Style = AnsiColor::Cyan.on_default();

/// Where the texts of facts begin.
const INDENT: usize = 25;

/// A wider terminal is not used: lines that long are hard to read.
const WIDEST: usize = 132;
const NARROWEST: usize = 48;

/// Writes the report.
///
/// # Errors
/// Those of `out`.
pub(super) fn write(out: &mut impl Write, report: &Report, layout: Layout) -> fmt::Result {
    let writer = &mut Writer { out, layout };
    writer.subject(&report.machine, "")?;
    for function in &report.functions {
        writer.subject(function, function.verdict.words())?;
    }
    writer.log(report)?;
    writer.summary(report)
}

struct Writer<'a, W> {
    out: &'a mut W,
    layout: Layout,
}

impl<W: Write> Writer<'_, W> {
    fn subject(&mut self, subject: &Subject, verdict: &str) -> fmt::Result {
        let Subject { name, title, facts, findings, .. } = subject;
        let style = style(subject.verdict);
        let verdict = if verdict.is_empty() { String::new() } else { format!(": {style}{verdict}{style:#}") };
        writeln!(self.out, "{BOLD}{name}{BOLD:#}  {title}{verdict}")?;
        for fact in facts.iter() {
            self.fact(fact)?;
        }
        for finding in findings {
            self.finding(finding)?;
        }
        writeln!(self.out)
    }

    fn fact(&mut self, fact: &Fact) -> fmt::Result {
        let (mark, style) = self.mark(fact.mark);
        let width = INDENT - 5;
        write!(self.out, "  {style}{mark}{style:#} {DIM}{:<width$}{DIM:#} ", fact.name)?;
        self.folded(&fact.text, INDENT, Style::new())
    }

    fn finding(&mut self, finding: &Finding) -> fmt::Result {
        let (mark, style) = self.mark(match finding.weight {
            Verdict::Works => Mark::Neutral,
            Verdict::Remedy => Mark::Poor,
            Verdict::Cannot => Mark::Bad,
        });
        write!(self.out, "  {style}{mark}{style:#} ")?;
        self.folded(&finding.text, 4, Style::new())?;
        finding.command.as_ref().map_or(Ok(()), |command| self.command(command))
    }

    /// In a line of its own and never folded, to be copied.
    fn command(&mut self, command: &str) -> fmt::Result {
        writeln!(self.out, "      {COMMAND}# {command}{COMMAND:#}")
    }

    fn log(&mut self, report: &Report) -> fmt::Result {
        if let Some(why) = &report.log_unreadable {
            write!(self.out, "{BOLD}kernel log{BOLD:#}  ")?;
            self.folded(why, 12, Style::new())?;
            return writeln!(self.out);
        }
        if report.log.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "{BOLD}kernel log{BOLD:#}")?;
        for symptom in &report.log {
            self.symptom(symptom)?;
        }
        writeln!(self.out)
    }

    fn symptom(&mut self, symptom: &Symptom) -> fmt::Result {
        let Symptom { line, seconds, count, meaning, advice, .. } = symptom;
        let (mark, style) = self.mark(Mark::Poor);
        let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
        write!(self.out, "  {style}{mark}{style:#} ")?;
        self.folded(&format!("[{seconds:.6}] {line}{times}"), 4, DIM)?;
        write!(self.out, "    ")?;
        self.folded(&format!("Meaning: {meaning}."), 4, Style::new())?;
        write!(self.out, "    ")?;
        self.folded(&format!("To do: {advice}."), 4, Style::new())
    }

    fn summary(&mut self, report: &Report) -> fmt::Result {
        let style = style(report.verdict);
        let text = match (report.functions.is_empty(), report.verdict) {
            (true, Verdict::Works) => {
                "The machine is fit. No function was looked at: none is bound to vfio-pci, name one by its address"
            }
            (_, Verdict::Works) if report.view == "guest" => "Nothing in this guest stands in the way",
            (_, Verdict::Works) => "Nothing on this host stands in the way",
            (_, Verdict::Remedy) => "Works with a remedy: do what stands behind each #, from the top",
            (_, Verdict::Cannot) => "Cannot work",
        };
        self.folded(&format!("{text}."), 0, style)
    }

    fn folded(&mut self, text: &str, indent: usize, style: Style) -> fmt::Result {
        let Some(width) = self.layout.width else { return writeln!(self.out, "{style}{text}{style:#}") };
        let width = width.clamp(NARROWEST, WIDEST).saturating_sub(indent);
        let options = Options::new(width).break_words(false);
        for (index, line) in textwrap::wrap(text, options).iter().enumerate() {
            let indent = if index == 0 { 0 } else { indent };
            writeln!(self.out, "{:indent$}{style}{line}{style:#}", "")?;
        }
        Ok(())
    }

    fn mark(&self, mark: Mark) -> (&'static str, Style) {
        match (mark, self.layout.unicode) {
            (Mark::Good, true) => ("✔", GREEN),
            (Mark::Good, false) => ("+", GREEN),
            (Mark::Neutral, true) => ("·", DIM),
            (Mark::Neutral, false) => ("-", DIM),
            (Mark::Poor, _) => ("!", YELLOW),
            (Mark::Bad, true) => ("✘", RED),
            (Mark::Bad, false) => ("x", RED),
        }
    }
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Works => GREEN,
        Verdict::Remedy => YELLOW,
        Verdict::Cannot => RED,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Facts;
    use super::*;

    fn report() -> Report {
        let mut facts = Facts::default();
        facts.say(Mark::Good, "driver", "vfio-pci ".repeat(30));
        facts.say(Mark::Poor, "word", "x".repeat(10));
        let findings = vec![Finding::remedy("something ".repeat(20), "echo ".repeat(30))];
        let subject =
            |facts, findings| Subject::new("0000:02:00.0", "a card", facts, findings, Verdict::Works);
        let symptom = Symptom {
            line: "line ".repeat(40),
            seconds: 12.5,
            count: 3,
            function: None,
            meaning: "it means something that takes some words to say in full, more than fit on a narrow terminal",
            advice: "do it",
        };
        let machine = subject(Facts::default(), Vec::new());
        Report::new("host", machine, vec![subject(facts, findings)], Ok(vec![symptom]))
    }

    fn written(layout: Layout) -> String {
        let mut text = String::new();
        write(&mut text, &report(), layout).unwrap();
        text
    }

    #[test]
    fn lines_fit_the_terminal_but_for_commands_which_are_copied() {
        for width in [60, 80, 100] {
            let text = written(Layout { width: Some(width), unicode: true });
            assert!(text.contains("\x1b["));
            let plain = anstream::adapter::strip_str(&text).to_string();
            for line in plain.lines().filter(|line| !line.contains("# echo")) {
                assert!(line.chars().count() <= width, "{width}: {line:?}");
            }
            assert!(plain.contains(&format!("# {}", "echo ".repeat(30).trim_end())), "{plain}");
        }
    }

    #[test]
    fn elsewhere_each_fact_is_one_line() {
        let text = written(Layout { width: None, unicode: false });
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert!(plain.is_ascii());
        assert_eq!(plain.lines().filter(|line| line.contains("vfio-pci vfio-pci")).count(), 1);
        assert!(plain.contains("  ! word                 xxxxxxxxxx\n"), "{plain}");
    }
}
