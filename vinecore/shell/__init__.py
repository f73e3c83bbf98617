"""The only rooms with sockets, processes and disks. They decide nothing: machines do."""
