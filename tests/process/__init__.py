"""The vault as its operators meet it: the installed command and real processes, over real sockets."""
