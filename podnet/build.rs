//! Embeds the eBPF object that `cargo xtask build-ebpf` has built.
//!
//! Without the object everything still compiles, so that `cargo build`, `cargo clippy` and an IDE need no
//! eBPF toolchain; the binary then says what it lacks when it is asked to load the programs.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let object =
        Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../target/bpf/podnet-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var("OUT_DIR").expect("set by cargo")).join("podnet-ebpf.o");
    if object.exists() {
        fs::copy(&object, &embedded).expect("the object can be read and OUT_DIR be written");
    } else {
        println!(
            "cargo::warning=no eBPF object: build with `cargo xtask build` to embed the kernel programs"
        );
        fs::write(&embedded, []).expect("OUT_DIR can be written");
    }
}
