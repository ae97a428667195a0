//! Sockets, timers and signals on io_uring or epoll behind one completion-shaped API.
