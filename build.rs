//! Finds DPDK, picks its LTS line, generates bindings and sets how the cdylib is linked.
//!
//! Without the feature `dpdk` it does nothing: what stands below the DPDK boundary builds on a
//! machine that has no DPDK.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    if let Err(message) = dpdk::configure() {
        for line in message.lines() {
            println!("cargo:warning={line}");
        }
        std::process::exit(1);
    }
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// One DPDK LTS that this driver knows: its release, our `cfg`, and its ABI number, which is
    /// both the suffix of every soname and the number in the version node.
    struct Line {
        release: &'static str,
        cfg: &'static str,
        abi: u32,
    }

    const LINES: [Line; 3] = [
        Line {
            release: "22.11",
            cfg: "dpdk_22_11",
            abi: 23,
        },
        Line {
            release: "24.11",
            cfg: "dpdk_24_11",
            abi: 25,
        },
        Line {
            release: "25.11",
            cfg: "dpdk_25_11",
            abi: 26,
        },
    ];

    /// What the driver calls. The linker is told to note only libraries that are really used, so a
    /// name too many costs nothing; `rte_log` is its own library since 23.11.
    const LIBRARIES: [&str; 7] = [
        "rte_eal",
        "rte_ethdev",
        "rte_bus_vdev",
        "rte_mempool",
        "rte_mbuf",
        "rte_net",
        "rte_telemetry",
    ];

    pub(super) fn configure() -> Result<(), String> {
        let library = pkg_config::Config::new()
            .cargo_metadata(false)
            .probe("libdpdk")
            .map_err(|error| {
                format!(
                    "DPDK was not found by pkg-config (libdpdk).\n\
                     Debian and Ubuntu have it in libdpdk-dev; `cargo xtask setup` installs it.\n\
                     {error}"
                )
            })?;
        let line = line_of(&library.version)?;
        println!("cargo:rustc-cfg={}", line.cfg);

        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
        let source = PathBuf::from(
            env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?,
        );
        bindings(&source, &out, &library.include_paths)?;
        link(line, &out, &library.link_paths)?;
        header(&source)
    }

    fn line_of(version: &str) -> Result<&'static Line, String> {
        LINES
            .iter()
            .find(|line| {
                version
                    .strip_prefix(line.release)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
            })
            .ok_or_else(|| {
                let known = LINES.map(|line| line.release).join(", ");
                format!("DPDK {version} is installed; the driver knows the layouts of {known} only")
            })
    }

    fn bindings(source: &Path, out: &Path, include_paths: &[PathBuf]) -> Result<(), String> {
        let wrapper = source.join("src/dpdk/wrapper.h");
        println!("cargo:rerun-if-changed={}", wrapper.display());

        let includes = include_paths
            .iter()
            .map(|path| format!("-I{}", path.display()));
        let mut builder = bindgen::Builder::default()
            .header(wrapper.display().to_string())
            .clang_args(includes)
            // Inline functions of DPDK's headers need SSE4.2, its own baseline.
            .clang_args(["-march=x86-64-v2", "-Wno-unknown-attributes"])
            .rust_edition(bindgen::RustEdition::Edition2024)
            .use_core()
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .generate_comments(false)
            .merge_extern_blocks(true)
            .wrap_unsafe_ops(true)
            .parse_callbacks(Box::new(Constants))
            // Ours, in `abi`: the accessors want one shape in all lines.
            .blocklist_type("rte_mbuf|rte_device|rte_eth_link");
        for types in TYPES {
            builder = builder.allowlist_type(types);
        }
        for functions in FUNCTIONS {
            builder = builder.allowlist_function(functions);
        }
        builder = builder.allowlist_var("rte_mempool_ops_table|constant_.*");

        let path = out.join("dpdk.rs");
        builder
            .generate()
            .map_err(|error| format!("DPDK's headers: {error}"))?
            .write_to_file(&path)
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Takes the prefix off the constants that `wrapper.h` makes of DPDK's macros.
    #[derive(Debug)]
    struct Constants;

    impl bindgen::callbacks::ParseCallbacks for Constants {
        fn item_name(&self, item: bindgen::callbacks::ItemInfo<'_>) -> Option<String> {
            item.name.strip_prefix("constant_").map(String::from)
        }
    }

    const TYPES: [&str; 7] = [
        "rte_mempool|rte_mempool_cache|rte_mempool_ops|rte_mempool_ops_table",
        "rte_pktmbuf_pool_private|rte_mbuf_ext_shared_info",
        "rte_eth_(conf|stats|xstat|xstat_name|dev_info|rxconf|txconf|rxq_info|txq_info|burst_mode)",
        "rte_eth_event_type|rte_power_monitor_cond|rte_ether_addr|rte_epoll_event|rte_devargs",
        "rte_proc_type_t|rte_intr_handle|rte_intr_handle_type|rte_net_hdr_lens",
        "rte_thread_t",
        "rte_memseg|rte_memseg_list|rte_iova_mode|rte_mem_event",
    ];

    const FUNCTIONS: [&str; 11] = [
        "rte_eth_dev_(is_valid_port|get_port_by_name|socket_id)",
        "rte_pktmbuf_free_bulk|rte_mbuf_dynflag_register",
        "rte_zmalloc_socket|rte_malloc_socket|rte_free|rte_malloc_virt2iova|rte_mem_virt2iova",
        "rte_log|rte_log_register_type_and_pick_level|rte_log_can_log",
        "rte_eal_process_type|rte_socket_id|rte_version|rte_vect_get_max_simd_bitwidth",
        "rte_ctrl_thread_create|rte_thread_create_control|rte_thread_join",
        "rte_intr_(instance_(alloc|free)|type_set|fd_set|vec_list_(alloc|free|index_set)|\
         efds_index_set|nb_efd_set|max_intr_set|efd_counter_size_set)",
        "rte_net_get_ptype",
        "rte_vfio_(is_enabled|setup_device|release_device|container_dma_(map|unmap))",
        "rte_eal_iova_mode|rte_mem_virt2memseg(_list)?|rte_memseg_walk|rte_mem_event_callback_register",
        "rte_telemetry_register_cmd|rte_tel_data_.*",
    ];

    fn link(line: &Line, out: &Path, link_paths: &[PathBuf]) -> Result<(), String> {
        for path in link_paths {
            println!("cargo:rustc-link-search=native={}", path.display());
        }
        // pkg-config leaves out the system's library directory, also below a sysroot.
        println!("cargo:rerun-if-env-changed=PKG_CONFIG_SYSROOT_DIR");
        if let Some(root) = env::var_os("PKG_CONFIG_SYSROOT_DIR") {
            let libdir = pkg_config::get_variable("libdpdk", "libdir")
                .map_err(|error| format!("libdpdk has no libdir: {error}"))?;
            let below_root = Path::new(&libdir).strip_prefix(&root);
            let relative = below_root.map_or(libdir.trim_start_matches('/').into(), Path::to_owned);
            println!(
                "cargo:rustc-link-search=native={}",
                Path::new(&root).join(relative).display()
            );
        }
        for library in LIBRARIES {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
        if line.cfg != "dpdk_22_11" {
            println!("cargo:rustc-link-lib=dylib=rte_log");
        }

        // The script defines the node and names nothing: `.symver` in exports.rs binds the two
        // functions to it, and rustc's own list keeps everything else local. All targets get it,
        // since the objects with `.symver` are also in the rlib. It needs rust-lld, which is
        // rustc's default linker here; GNU ld refuses two scripts.
        let node = format!("DPDK_{}", line.abi);
        println!("cargo:rustc-env=DPDK_VERSION_NODE={node}");
        let script = out.join("version.map");
        fs::write(&script, format!("{node} {{ }};\n"))
            .map_err(|error| format!("{}: {error}", script.display()))?;
        println!(
            "cargo:rustc-link-arg=-Wl,--version-script={}",
            script.display()
        );
        println!(
            "cargo:rustc-cdylib-link-arg=-Wl,-soname,librte_net_vhost.so.{}",
            line.abi
        );
        // Once loaded it stays: EAL holds pointers to the driver, threads run our code.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        Ok(())
    }

    /// Brings `include/rte_eth_vhost.h` up to date. It is checked in, so a source tree that cannot
    /// be written is no reason to fail.
    fn header(source: &Path) -> Result<(), String> {
        let exports = source.join("src/exports.rs");
        let settings = source.join("cbindgen.toml");
        println!("cargo:rerun-if-changed={}", exports.display());
        println!("cargo:rerun-if-changed={}", settings.display());
        let config = cbindgen::Config::from_file(&settings)
            .map_err(|error| format!("{}: {error}", settings.display()))?;
        let bindings = cbindgen::Builder::new()
            .with_config(config)
            .with_src(&exports)
            .generate()
            .map_err(|error| format!("{}: {error}", exports.display()))?;
        let mut text = Vec::new();
        bindings.write(&mut text);
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }

        let path = source.join("include/rte_eth_vhost.h");
        if fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        if let Err(error) = fs::write(&path, text) {
            println!(
                "cargo:warning={} is not up to date: {error}",
                path.display()
            );
        }
        Ok(())
    }
}
