// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which Debian mirror this machine uses.

use std::path::Path;

/// Overrides what apt is configured for, and is needed on machines that are not Debian.
pub(crate) const MIRROR_VARIABLE: &str = "VIRTIO_IRQ_LAB_MIRROR";

const SUITES: &[&str] = &[
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
];

/// The first enabled Debian archive in `/etc/apt` under `root`, or nothing.
pub(crate) fn mirror(root: &Path) -> Option<String> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    let entries = std::fs::read_dir(apt.join("sources.list.d")).ok();
    let mut parts: Vec<_> =
        entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    parts.sort();
    files.append(&mut parts);
    files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let found = match file.extension()?.to_str()? {
            "list" => one_line(&text),
            "sources" => deb822(&text),
            _ => None,
        }?;
        resolve(root, &found)
    })
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
        let line = match line.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1.trim(),
            None => line,
        };
        let mut words = line.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (is_debian(suite) && words.any(|component| component == "main")).then(|| uri.to_owned())
    })
}

/// Stanzas of `Key: value`, continued by indented lines.
fn deb822(text: &str) -> Option<String> {
    text.replace('\r', "").split("\n\n").find_map(|stanza| {
        let field = |name: &str| -> Option<Vec<String>> {
            let mut lines = stanza.lines().filter(|line| !line.starts_with('#'));
            let first = lines.by_ref().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })?;
            let rest = lines.take_while(|line| line.starts_with([' ', '\t']));
            let words = std::iter::once(first.as_str()).chain(rest).flat_map(str::split_whitespace);
            Some(words.map(str::to_owned).collect())
        };
        let enabled = field("Enabled").is_none_or(|words| words != ["no"]);
        let binary = field("Types")?.iter().any(|kind| kind == "deb");
        let main = field("Components")?.iter().any(|component| component == "main");
        let debian = field("Suites")?.iter().any(|suite| is_debian(suite));
        if enabled && binary && main && debian { field("URIs")?.into_iter().next() } else { None }
    })
}

/// A release or its updates; the security archive does not carry what is needed.
fn is_debian(suite: &str) -> bool {
    let base = suite.strip_suffix("-updates").or_else(|| suite.strip_suffix("-backports")).unwrap_or(suite);
    SUITES.contains(&base)
}

/// `mirror+file:PATH`, as cloud images have it, names a file with one mirror a line.
fn resolve(root: &Path, uri: &str) -> Option<String> {
    let Some(path) = uri.strip_prefix("mirror+file:") else { return Some(uri.to_owned()) };
    let list = std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok()?;
    let first = list.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    first.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_archive_and_strangers_are_passed_over() {
        let text = "# deb http://commented.example/debian trixie main\n\
                    deb http://security.example/debian-security trixie-security main\n\
                    deb https://tools.example/apt tools-trixie main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie-updates contrib main\n";
        assert_eq!(one_line(text).unwrap(), "http://mirror.example/debian");
    }

    #[test]
    fn a_stanza_is_read_with_continuation_lines_and_comments() {
        let text = "Types: deb\nURIs: http://off.example/debian\nSuites: sid\nComponents: main\nEnabled: no\n\n\
                    # comment\nTypes: deb deb-src\nURIs:\n http://one.example/debian\n http://two.example/debian\n\
                    Suites: bookworm\n bookworm-updates\nComponents: main\n";
        assert_eq!(deb822(text).unwrap(), "http://one.example/debian");
    }

    #[test]
    fn a_mirror_list_gives_its_first_mirror() {
        let root = tempfile::tempdir().unwrap();
        let apt = root.path().join("etc/apt");
        std::fs::create_dir_all(apt.join("sources.list.d")).unwrap();
        std::fs::create_dir_all(apt.join("mirrors")).unwrap();
        std::fs::write(apt.join("mirrors/debian.list"), "\nhttps://first.example/debian priority:1\n")
            .unwrap();
        let stanza =
            "Types: deb\nURIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n";
        std::fs::write(apt.join("sources.list.d/debian.sources"), stanza).unwrap();
        assert_eq!(mirror(root.path()).unwrap(), "https://first.example/debian");
    }

    #[test]
    fn no_debian_mirror_is_none() {
        assert_eq!(mirror(Path::new("/nonexistent")), None);
        assert_eq!(one_line("deb http://archive.example/ubuntu noble main"), None);
    }
}
