# Sourced by the scripts here that need packages of another Debian than the machine's: an apt with the
# machine's own mirror that sees one suite and an empty machine, and touches nothing outside its folder.

# The machine's own Debian mirror; nothing when it has none.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        sed -n '\,/debian/*$,{p;q;}'
}

# apt_world FOLDER MIRROR SUITE: from now on apt works in there. Packages come to FOLDER/archives.
apt_world() {
    mkdir -p "$1/lists/partial" "$1/archives/partial"
    : >"$1/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $2 $3 main" \
        >"$1/sources.list"
    # A mirror that is a few weeks behind will do: what it has is signed.
    cat >"$1/apt.conf" <<EOF
Dir::State "$1";
Dir::State::status "$1/status";
Dir::State::lists "$1/lists";
Dir::Cache "$1";
Dir::Cache::archives "$1/archives";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled "false";
Debug::NoLocking "true";
EOF
    export APT_CONFIG="$1/apt.conf"
}
