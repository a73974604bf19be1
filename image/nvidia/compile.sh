# Compiles the modules, in a folder that holds the locked packages alone. RELEASE is the kernel's, JOBS how many
# compilers run at a time, which changes no bit. What the compiler could write of when, where and by whom is fixed.
set -eu
export LC_ALL=C TZ=UTC HOME=/build
export SOURCE_DATE_EPOCH=946684800 KBUILD_BUILD_TIMESTAMP='Sat Jan  1 00:00:00 UTC 2000'
export KBUILD_BUILD_USER=tributary KBUILD_BUILD_HOST=tributary KBUILD_BUILD_VERSION=1
umask 022
headers=/usr/src/linux-headers-$RELEASE
[ -d "$headers" ] || { echo "there are no headers of the kernel $RELEASE: run go run ./image lock"; exit 1; }
common=$(echo /usr/src/linux-headers-*-common)
source=$(echo /usr/src/nvidia-current-open-*)
mkdir /build/nvidia
cp -r "$source"/. /build/nvidia/
chmod -R u+w /build/nvidia
# No BTF: it would take pahole, and nothing reads these modules' types.
make -j "$JOBS" -C "$headers" M=/build/nvidia ARCH=x86_64 DEB_BUILD_ARCH=amd64 NV_KERNEL_SOURCES="$common" NV_KERNEL_OUTPUT="$headers" \
  NV_KERNEL_MODULES='nvidia nvidia-uvm' NV_SPECTRE_V2=0 CONFIG_DEBUG_INFO_BTF_MODULES= modules
for m in nvidia nvidia-uvm; do strip --strip-debug -o "/build/$m.ko" "/build/nvidia/$m.ko"; done
