# Finishes the folder that becomes the image of the trainer: what Debian's packages do on a machine when they are set up.
set -eu
export LC_ALL=C TZ=UTC HOME=/tmp SOURCE_DATE_EPOCH=946684800 PYTHONHASHSEED=0
umask 022
for lib in blas lapack; do # update-alternatives(1)
	ln -sf "openblas-pthread/lib$lib.so.3" "/usr/lib/x86_64-linux-gnu/lib$lib.so.3"
done
ln -sf openblas-pthread/libopenblas.so.0 /usr/lib/x86_64-linux-gnu/libopenblas.so.0
ln -sf python3.11 /usr/bin/python3
python3 -c 'import torch, torch.distributed.run, torch.onnx; print(torch.__version__)' >/build/torch-version
# Compiled once here instead of at each start of a rank; unchecked, since nothing in an image changes.
python3 -m compileall -q -s / --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3 /usr/lib/tributary >/dev/null || true
