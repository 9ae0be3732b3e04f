#!/bin/sh
# Its server is linked against the Python that it was built for, wherever that keeps its library.
libraries=$(python -c "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")
LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec python -m bench.peers.triton.app
