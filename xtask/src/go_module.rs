//! Programs of others that the tests run, built from a Go module of ours into the tools folder.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::process::{command, find, is_executable, output, run};
use crate::workspace;

/// A Go module in `tests`, and what is built from it.
pub(crate) struct GoModule {
    /// The name of its folder, and of the one in the tools folder.
    pub(crate) name: &'static str,
    /// What is built.
    pub(crate) programs: &'static [Program],
    /// Whether a part of it is in C.
    pub(crate) cgo: bool,
    /// The linker's flags, by what is in `go.mod`.
    pub(crate) linker_flags: fn(&str) -> Result<String>,
    /// The variable that tells tests where the programs are.
    pub(crate) variable: &'static str,
}

/// A program of a Go module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The name of the program.
    pub(crate) name: &'static str,
    /// The Go package it is built from.
    pub(crate) package: &'static str,
}

/// The first Go that fetches by itself the newer one that a module asks for.
const MINIMUM_GO: (u32, u32) = (1, 21);

impl GoModule {
    fn source(&self) -> PathBuf {
        workspace::root().join("tests").join(self.name)
    }

    /// The folder of the programs: another one whenever a version in the module changes.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(workspace::tools()?.join(self.name).join(hash).join("bin"))
    }

    /// The programs that have not been built.
    pub(crate) fn missing(&self) -> Result<Vec<Program>> {
        let folder = self.folder()?;
        let built = |program: &&Program| is_executable(&folder.join(program.name));
        Ok(self.programs.iter().filter(|program| !built(program)).copied().collect())
    }

    /// Builds `programs`.
    pub(crate) fn build(&self, programs: &[Program]) -> Result<()> {
        let go = find_go()?;
        let folder = self.folder()?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = self.source().join("go.mod");
        let go_mod = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let flags = (self.linker_flags)(&go_mod).with_context(|| format!("in {}", path.display()))?;
        for program in programs {
            // A program appears under its name when it is whole, which serves as the stamp.
            let partial = folder.join(format!(".{}.partial", program.name));
            let mut build = command(&go);
            build.current_dir(self.source()).env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
            build.env("GOTOOLCHAIN", "auto").env_remove("GOFLAGS");
            build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
            run(build.arg(&partial).arg(program.package))?;
            let whole = folder.join(program.name);
            fs::rename(&partial, &whole).with_context(|| format!("cannot write {}", whole.display()))?;
        }
        Ok(())
    }

    /// The variable that tells tests where the programs are, if they have been built.
    pub(crate) fn variable(&self) -> Result<Option<(&'static str, OsString)>> {
        Ok(self.missing()?.is_empty().then_some((self.variable, self.folder()?.into())))
    }
}

fn find_go() -> Result<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let Some(go) = find("go").or_else(|| is_executable(&usual).then_some(usual)) else {
        bail!("building what the cluster tests run needs Go: {}", how_to_get_go());
    };
    let printed = output(command(&go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
    match parse_go_version(&printed) {
        Some(version) if version >= MINIMUM_GO => Ok(go),
        _ => bail!("{} is {}, which is too old: {}", go.display(), printed.trim(), how_to_get_go()),
    }
}

fn how_to_get_go() -> String {
    let (major, minor) = MINIMUM_GO;
    format!(
        "install Go {major}.{minor} or newer (it fetches the version that the module asks for) and put it on PATH \
         or in /usr/local/go, or leave the cluster tests out with --without-cluster"
    )
}

/// Reads `go1.26.8` and the like.
fn parse_go_version(printed: &str) -> Option<(u32, u32)> {
    let mut numbers = printed.trim().strip_prefix("go")?.split('.');
    let minor = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    Some((numbers.next()?.parse().ok()?, minor(numbers.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_of_go() {
        assert_eq!(parse_go_version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(parse_go_version("go1.19"), Some((1, 19)));
        assert_eq!(parse_go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse_go_version("devel"), None);
    }
}
