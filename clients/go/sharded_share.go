package stepd

import "maps"

// This file allocates memory with the layout of a step's calls. The method divide recognizes such memory.

// elementBytes is the number of bytes that a float32 AdamW step sends per element: parameter, gradient and two slots.
const elementBytes = 16

// Share is Client.Share for sharded steps: one file per call, in the order of the tensors. RequestBytes limits a call's
// parameters, gradients and two float32 slots. Step splits Params from Share along the files, and copies neither Params nor
// Grads that keep their names. Use the Clients of NewSharded; otherwise only the first client avoids the copy.
func (s *Sharded) Share(tensors Tensors) (shared Tensors, free func(), err error) {
	if len(s.Clients) == 0 {
		return nil, nil, errNoClients
	}
	var frees []func()
	free = func() {
		for _, free := range frees {
			free()
		}
	}
	add := func(group Tensors) error {
		given, freeGroup, err := s.Clients[0].Share(group)
		if err == nil {
			frees = append(frees, s.remember(given), freeGroup)
			shared = append(shared, given...)
		}
		return err
	}
	start, room := 0, s.limit()
	for i, t := range tensors {
		elements, _ := product(t.Shape)
		if i > start && elements*elementBytes > max(room, 0) {
			if err == nil {
				err = add(tensors[start:i])
			}
			start, room = i, s.limit()
		}
		room -= elements * elementBytes
	}
	if err == nil && start < len(tensors) {
		err = add(tensors[start:])
	}
	if err != nil {
		free()
		return nil, nil, err
	}
	return shared, free, nil
}

// remember records that the tensors form one call, until the caller calls forget.
func (s *Sharded) remember(tensors Tensors) (forget func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups == nil {
		s.groups = map[*byte]int{}
	}
	s.last++
	number := s.last
	for _, t := range tensors {
		if len(t.Data) > 0 {
			s.groups[&t.Data[0]] = number
		}
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		maps.DeleteFunc(s.groups, func(_ *byte, other int) bool { return other == number })
	}
}

// groupsOf returns the group of each tensor, or 0. A tensor without values joins the group of the previous tensor, as in Share.
func (s *Sharded) groupsOf(tensors Tensors) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	groups := make([]int, len(tensors))
	for i, t := range tensors {
		if len(t.Data) > 0 {
			groups[i] = s.groups[&t.Data[0]]
		} else if i > 0 {
			groups[i] = groups[i-1]
		}
	}
	for i := len(tensors) - 2; i >= 0; i-- {
		if len(tensors[i].Data) == 0 && groups[i] == 0 {
			groups[i] = groups[i+1]
		}
	}
	return groups
}
