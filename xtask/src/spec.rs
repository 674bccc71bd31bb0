// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask spec`: the specification as one page and on paper, with its diagrams drawn.
//!
//! pandoc makes HTML of the Markdown, and a headless Chromium draws the diagrams by mermaid, as GitHub does, and prints. What
//! comes out has no script in it and needs nothing beside it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// Where everything goes, below the workspace's root.
const BUILT: &str = "target/spec";

/// The documents, in the order in which they are read.
const DOCUMENTS: &[&str] = &[
    "virtio-irq.md",
    "annex-vhost-user.md",
    "annex-platforms.md",
    "annex-guests.md",
    "coverage.md",
    "README.md",
];

/// Files that the documents link to and that lie beside what was built.
const COMPANIONS: &[&str] = &["virtio_irq.h", "vectors.json"];

/// What draws the diagrams: a package of npm's registry.
const MERMAID: &str = "mermaid@11.17.2";

const STYLE: &str = include_str!("spec/style.html");
const RENDER: &str = include_str!("spec/render.html");

pub(crate) fn run(root: &Path) -> ExitCode {
    match build(root) {
        Ok((page, paper)) => {
            println!("{}\n{}", page.display(), paper.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cargo xtask spec: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(root: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let built = root.join(BUILT);
    fs::create_dir_all(&built)?;
    let mermaid = mermaid(root)?;
    let text = join(&root.join("spec"))?;
    let diagrams = text.matches("\n```mermaid\n").count();
    for companion in COMPANIONS {
        fs::copy(root.join("spec").join(companion), built.join(companion))?;
    }

    let [source, style, render, draft] =
        ["virtio-irq.md", "style.html", "render.html", "draft.html"].map(|name| built.join(name));
    fs::write(&source, &text)?;
    fs::write(&style, STYLE)?;
    fs::write(&render, format!("<script src=\"{}\"></script>\n{RENDER}", mermaid.display()))?;
    let options = ["--from=gfm", "--to=html5", "--standalone", "--toc", "--toc-depth=3", "--no-highlight"];
    let mut pandoc = Command::new("pandoc");
    pandoc.args(options).args(["--metadata=lang:en", "--metadata=title:virtio-irq: the specification"]);
    pandoc.arg("--include-in-header").arg(&style).arg("--include-after-body").arg(&render);
    output(pandoc.arg("--output").arg(&draft).arg(&source), "pandoc", "apt-get install pandoc")?;

    let page = built.join("virtio-irq.html");
    let html = browser(&["--virtual-time-budget=60000", "--dump-dom"], &draft)?.stdout;
    let html = String::from_utf8(html).map_err(io::Error::other)?;
    check(&html, diagrams)?;
    fs::write(&page, html)?;
    let paper = built.join("virtio-irq.pdf");
    let print = format!("--print-to-pdf={}", paper.display());
    browser(&["--no-pdf-header-footer", "--generate-pdf-document-outline", &print], &page)?;
    for intermediate in [source, style, render, draft] {
        fs::remove_file(intermediate)?;
    }
    Ok((page, paper))
}

/// The documents as one, whose links lead to places in it.
fn join(spec: &Path) -> io::Result<String> {
    let mut texts = Vec::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(spec.join(name))?;
        let (_, text) =
            text.split_once("-->\n").ok_or_else(|| invalid(format!("{name} has no SPDX line")))?;
        texts.push(text.to_owned());
    }
    let mut joined = texts.join("\n");
    for (name, text) in DOCUMENTS.iter().zip(&texts) {
        let title = anchor(text.lines().next().unwrap_or_default());
        joined = joined
            .replace(&format!("]({name}#"), "](#")
            .replace(&format!("]({name})"), &format!("](#{title})"));
    }
    // Built files lie one directory deeper than their sources.
    Ok(joined.replace("](../", "](../../"))
}

/// The anchor of a heading, as GitHub and pandoc make it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Every diagram is drawn, and every link within the page leads somewhere, and to one place only.
fn check(html: &str, diagrams: usize) -> io::Result<()> {
    if let Some((_, why)) = html.split_once("data-failed=\"") {
        return Err(invalid(format!(
            "a diagram cannot be drawn: {}",
            why.split('"').next().unwrap_or_default()
        )));
    }
    let drawn = html.matches("<svg ").count();
    if drawn != diagrams {
        return Err(invalid(format!("{drawn} of {diagrams} diagrams were drawn, see {BUILT}/draft.html")));
    }
    let values = |name: &str| {
        let start = format!(" {name}=\"");
        let places = html.match_indices(&start).map(|(at, start)| at + start.len()).collect::<Vec<_>>();
        places.into_iter().filter_map(|at| html[at..].split('"').next()).collect::<Vec<_>>()
    };
    let mut ids = BTreeSet::new();
    let mut twice = BTreeSet::new();
    for id in values("id") {
        if !ids.insert(id) {
            twice.insert(id);
        }
    }
    for link in values("href").into_iter().filter_map(|link| link.strip_prefix('#')) {
        if !ids.contains(link) || twice.contains(link) {
            return Err(invalid(format!("a link leads to #{link}, which is there not at all or twice")));
        }
    }
    Ok(())
}

/// Path of mermaid's script, fetched once.
fn mermaid(root: &Path) -> io::Result<PathBuf> {
    let tools = root.join("target/tools").join(MERMAID);
    let script = tools.join("package/dist/mermaid.min.js");
    if !script.exists() {
        println!("fetching {MERMAID} to {} (once)", tools.display());
        fs::create_dir_all(&tools)?;
        let mut pack = Command::new("npm");
        pack.args(["pack", "--silent", MERMAID]).current_dir(&tools);
        let packed = output(&mut pack, "npm", "apt-get install npm")?.stdout;
        let packed = String::from_utf8_lossy(&packed).trim().to_owned();
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--file", &packed, "package/dist/mermaid.min.js"]).current_dir(&tools);
        output(&mut unpack, "tar", "apt-get install tar")?;
        fs::remove_file(tools.join(packed))?;
    }
    Ok(script)
}

/// Has a browser open a page. What it opens is ours, so it works without the sandbox that root cannot have.
fn browser(arguments: &[&str], page: &Path) -> io::Result<Output> {
    let profile = tempfile::tempdir()?;
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display()));
    chromium.args(arguments).arg(format!("file://{}", page.display()));
    output(&mut chromium, "chromium", "apt-get install chromium")
}

fn output(command: &mut Command, name: &str, remedy: &str) -> io::Result<Output> {
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!("{name} is missing: {remedy}")),
        _ => error,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{name} failed: {}: {}", output.status, said.trim())))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
