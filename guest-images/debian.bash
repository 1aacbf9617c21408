# shellcheck shell=bash
# debian.bash - Debian disk images without mounting, sourced by those that make one
#
# guest-images/build and tests/lab/build-node make the same kind of thing: a kernel, an initrd and
# an ext4 root file system, from Debian packages only. mmdebstrap unpacks the packages into a
# folder, the caller changes what it likes in there, and mkfs.ext4 -d turns the folder into a file
# system. No loop device and no mount on the host's side: that works in containers too.
#
# Where packages come from is this host's business: its own apt sources and proxy settings are
# used, read when the image is made, so no mirror is named in this repository.

readonly DEBIAN_SUITE=bookworm

# One line on what goes on, with the seconds since the start: these builds take a minute
say() {
	printf '%s: [%3d s] %s\n' "${0##*/}" "$SECONDS" "$1" >&2
}

die() {
	printf '%s: %s\n' "${0##*/}" "$1" >&2
	exit 1
}

# Name of an image: a hash of all that decides what is in it. Arguments: the files it is made by.
# Newer packages on the mirror do not count: an image stays until its recipe changes or --force.
image_key() {
	cat -- "$@" | sha256sum | cut -c1-32
}

# True when the folder $1 holds a finished image with key $2
image_fresh() {
	[[ -r $1/key && $(<"$1/key") = "$2" ]]
}

# Debian's own entries of this host's apt sources go to files in folder $1. Those of other
# repositories stay behind, an image has no use for them. No file means: mmdebstrap's default.
debian_sources() {
	local out=$1 file
	for file in /etc/apt/sources.list.d/*.sources; do
		[[ -r $file ]] || continue
		awk -v suite="$DEBIAN_SUITE" 'BEGIN { RS = ""; ORS = "\n\n" }
			$0 ~ "(^|\n)Suites:([^\n]* )?" suite "(-updates|-security)?( |\n|$)" &&
			/(^|\n)Components:[^\n]*main/ && !/(^|\n)Enabled: *no/' "$file"
	done >"$out/debian.sources"
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[[ -r $file ]] || continue
		grep -E "^deb .* $DEBIAN_SUITE(-updates|-security)? .*\<main\>" "$file" || true
	done >"$out/debian.list"
	find "$out" -name 'debian.*' -size 0 -delete
}

# Make folder $1 a Debian system. Arguments after it: packages. Root only: files keep their owners.
debian_tree() {
	local tree=$1 work
	shift
	[[ $(id -u) = 0 ]] || die "run this as root: the files of the image belong to root"
	work=$(mktemp -d)
	debian_sources "$work"
	apt-config dump |
		grep -E '^Acquire::(http|https|ftp|Check-|Retries|ForceIP|Languages)[^ ]* "[^"]+";' \
			>"$work/apt.conf" || true

	# The modules file is read by Debian's initramfs-tools, and has to be there before the kernel
	# package makes the initrd.
	# shellcheck disable=SC2016
	mmdebstrap --mode=root --variant=apt --include="$(IFS=,; echo "$*")" \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--aptopt="$work/apt.conf" --aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"' \
		--essential-hook='printf "MODULES=list\nCOMPRESS=lz4\nRESUME=none\n" >"$1/etc/initramfs-tools/conf.d/coracle"' \
		--essential-hook="printf '%s\n' $INITRD_MODULES"' >"$1/usr/share/initramfs-tools/modules.d/coracle"' \
		"$DEBIAN_SUITE" "$tree" "$work"/debian.* >"$work/log" 2>&1 || {
		tail -n 20 "$work/log" >&2
		die "mmdebstrap failed; all of its output is in $work/log"
	}
	rm -rf "$work" "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/apt/sources.list.d/*
}

# Move the kernel and the initrd out of tree $1 into folder $2, and unpack the kernel beside them
debian_kernel() {
	mv "$1"/boot/vmlinuz-* "$2/vmlinuz"
	mv "$1"/boot/initrd.img-* "$2/initrd.img"
	rm -f "$1"/boot/* "$1"/vmlinuz* "$1"/initrd.img*
	"$(dirname "${BASH_SOURCE[0]}")/unpack-kernel" "$2/vmlinuz" "$2/vmlinux"
}

# Switch off what a machine that lives for a minute has no use for. $1: tree; $2...: more units
debian_quiet() {
	local tree=$1 unit
	shift
	for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
		e2scrub_all.timer e2scrub_reap.service systemd-timesyncd.service systemd-pstore.service \
		systemd-fsck-root.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
		systemd-journal-flush.service systemd-random-seed.service systemd-networkd-wait-online.service \
		getty@tty1.service "$@"; do
		ln -sf /dev/null "$tree/etc/systemd/system/$unit"
	done
	mkdir -p "$tree/etc/systemd/journald.conf.d"
	printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' \
		>"$tree/etc/systemd/journald.conf.d/coracle.conf"
	: >"$tree/etc/motd"
	: >"$tree/etc/machine-id"
	: >"$tree/root/.hushlogin"
	rm -rf "$tree"/var/log/*.log "$tree"/var/log/apt "$tree"/var/cache/* "$tree"/var/lib/apt/lists/*
	mkdir -p "$tree"/var/cache/{apt/archives/partial,ldconfig} "$tree"/var/lib/apt/lists/partial
}

# Turn tree $1 into the ext4 image $2 of size $3 with label $4. Nothing is left for the first mount
# to write in the background: that would disturb what a test measures.
debian_ext4() {
	rm -f "$2"
	truncate -s "$3" "$2"
	mkfs.ext4 -q -F -L "$4" -m 0 -E lazy_itable_init=0,lazy_journal_init=0 -d "$1" "$2"
	fallocate --dig-holes "$2"
}
